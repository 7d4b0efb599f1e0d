from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcn_plugin.data import ImageSet, load_npz
from dcn_plugin.data.labels import class_numbers
from dcn_plugin.errors import LabelError

INTEGERS = [np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64]
NUMBERS = [*INTEGERS, np.float16, np.float32, np.float64]
TENSORS = [torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32, torch.int64]


@given(
    numbers=st.lists(st.integers(0, 100), min_size=1, max_size=20),
    dtype=st.sampled_from(NUMBERS),
    column=st.booleans(),
    order=st.sampled_from(["<", ">"]),
)
def test_labels_of_every_type_come_out_as_the_same_numbers(
    numbers: list[int], dtype: Any, column: bool, order: str
) -> None:
    stored = np.array(numbers, dtype=np.dtype(dtype).newbyteorder(order))
    made = class_numbers(stored[:, None] if column else stored, source="mine")
    assert (made.dtype, made.tolist()) == (torch.int64, numbers)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    numbers=st.lists(st.integers(0, 9), min_size=1, max_size=6), dtype=st.sampled_from(NUMBERS), column=st.booleans()
)
def test_archives_are_read_whatever_the_type_of_their_labels(
    tmp_path: Path, numbers: list[int], dtype: Any, column: bool
) -> None:
    labels = np.array(numbers, dtype=dtype)
    np.savez(
        tmp_path / "a.npz",
        images=np.zeros((len(numbers), 4, 4), np.uint8),
        labels=labels.reshape(-1, 1) if column else labels,
    )
    data = load_npz(tmp_path / "a.npz")
    assert (data.labels.dtype, data.labels.tolist(), data.num_classes) == (torch.int64, numbers, max(numbers) + 1)


@pytest.mark.parametrize("dtype", TENSORS)
@pytest.mark.parametrize("column", [False, True])
def test_a_set_of_tensors_takes_every_integer_type(dtype: torch.dtype, column: bool) -> None:
    labels = torch.tensor([2, 0, 1]).to(dtype)
    data = ImageSet(torch.zeros(3, 1, 4, 4), labels[:, None] if column else labels, 3, "mine")
    assert (data.labels.dtype, data.labels.tolist()) == (torch.int64, [2, 0, 1])
    assert data.content_hash == ImageSet(torch.zeros(3, 1, 4, 4), torch.tensor([2, 0, 1]), 3, "mine").content_hash


def test_true_and_false_are_1_and_0() -> None:
    assert class_numbers(np.array([True, False]), source="mine").tolist() == [1, 0]


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0.5]),
        np.array([np.nan]),
        np.array([np.inf]),
        np.array(["ant"]),
        np.array([1 + 1j]),
        np.array([2**63], dtype=np.uint64),
        np.array([1e300]),
        np.zeros((2, 3)),
        np.zeros((2, 1, 1), np.int64),
        np.int64(3),
    ],
)
def test_what_is_no_class_number_is_refused_by_the_name_of_its_source(labels: Any) -> None:
    with pytest.raises(LabelError, match="mine"):
        class_numbers(labels, source="mine")


def test_one_hot_rows_are_told_what_to_do() -> None:
    with pytest.raises(LabelError, match=r"argmax\(1\)"):
        class_numbers(np.eye(3, dtype=np.uint8), source="mine")
