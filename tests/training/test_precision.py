from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from dcn_plugin.training import History
from dcn_plugin.training.precision import _tell, autocast, compute_dtype, has_bfloat16

CPU = torch.device("cpu")


def test_a_processor_has_bfloat16_if_the_system_lists_the_instructions() -> None:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        pytest.skip("no /proc/cpuinfo to compare with")
    assert has_bfloat16(CPU) == ("avx512_bf16" in info.read_text())


def test_of_other_devices_it_is_not_known() -> None:
    assert not has_bfloat16(torch.device("meta"))


@pytest.mark.parametrize(("there", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_step_computes_in_bfloat16_where_it_is_asked_for_and_there(
    there: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcn_plugin.training.precision.has_bfloat16", lambda device: there)
    assert compute_dtype(True, CPU) is dtype
    assert compute_dtype(False, CPU) is torch.float32
    a = torch.ones(2, 2)
    with autocast(True, CPU):
        assert (a @ a).dtype is dtype
    with autocast(False, CPU):
        assert (a @ a).dtype is torch.float32


def test_what_was_asked_for_in_vain_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dcn_plugin.training.precision.has_bfloat16", lambda device: False)
    _tell.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            compute_dtype(True, CPU)
    assert [record.message for record in caplog.records] == [
        "amp: no instructions for bfloat16 on this cpu; training in float32, which is faster"
    ]


def test_a_history_says_which_precisions_its_epochs_had_if_it_knows() -> None:
    history = History({})
    assert history.precision is None
    history.begin(CPU, torch.bfloat16)
    history.begin(CPU, torch.bfloat16)
    assert history.precision == "bfloat16"
    history.begin(CPU)
    assert history.precision == "bfloat16, float32"
    older = History({}, sessions=[{"first_epoch": 0}])
    assert older.precision is None
