from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dcn_plugin.attacks import CW, PGD, Attack, BoundaryAttack, EnsembleSource, HopSkipJump
from dcn_plugin.errors import ImageRangeError, LabelError, SpecError
from tests.toys import ModeNet, images, linear_model


@pytest.mark.parametrize(
    ("real", "whole"),
    [
        (np.float32, np.int16),
        (np.float64, np.int64),
        (np.asarray, np.asarray),
        (torch.tensor, torch.tensor),
        (float, int),
    ],
)
def test_numbers_of_numpy_and_torch_are_plain_settings(real: Any, whole: Any) -> None:
    attack = PGD(real(0.25), steps=whole(3), step_size=real(0.125))
    assert attack.settings == PGD(0.25, steps=3, step_size=0.125).settings
    assert {type(value) for value in attack.settings.values()} == {float, int, bool}
    # What is no scalar would be left out of records and of cache keys.
    assert attack.unkeyed == ()


def test_every_attack_takes_numpys_numbers() -> None:
    two, half = np.int64(20), np.float32(0.5)
    pairs: list[tuple[Attack, Attack]] = [
        (CW(confidence=half, steps=two, bisections=two), CW(confidence=0.5, steps=20, bisections=20)),
        (BoundaryAttack(max_queries=two, source_step=half), BoundaryAttack(max_queries=20, source_step=0.5)),
        (HopSkipJump(max_queries=two, theta=half, coarse=two), HopSkipJump(max_queries=20, theta=0.5, coarse=20)),
        (PGD(0.1, seed=np.uint8(3)), PGD(0.1, seed=3)),  # type: ignore[arg-type]
    ]
    for given, plain in pairs:
        assert given.settings == plain.settings
        assert repr(given) == repr(plain)
        assert {type(value) for value in given.settings.values()} <= {float, int, bool, str, type(None)}


@pytest.mark.parametrize(
    ("make", "settings"),
    [
        *((PGD, {"eps": eps}) for eps in ("0.1", "8/255", None, True, [0.1], torch.tensor([0.1, 0.2]), 1 + 0j)),
        *((PGD, {"eps": 0.1, "steps": steps}) for steps in ("3", 2.5, True, None)),
        (PGD, {"eps": 0.1, "step_size": "big"}),
        (PGD, {"eps": 0.1, "random_start": "no"}),
        (PGD, {"eps": 0.1, "seed": "0"}),
        (CW, {"steps": "3"}),
        (CW, {"confidence": "high"}),
        (CW, {"c_start": "1e-3"}),
        (CW, {"early_stop": 1}),
        (BoundaryAttack, {"max_queries": "100"}),
        (BoundaryAttack, {"steps": 2.5}),
        (BoundaryAttack, {"scouts": "5"}),
        (BoundaryAttack, {"directions": 2.5}),
        (BoundaryAttack, {"spherical_step": "0.1"}),
        (BoundaryAttack, {"step_adaptation": "x"}),
        (HopSkipJump, {"theta": "0.1"}),
        (HopSkipJump, {"initial_probes": 10.5}),
        (HopSkipJump, {"start_draws": "7"}),
    ],
)
def test_a_setting_of_another_type_is_refused_by_name(make: type[Attack], settings: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        make(**settings)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        (np.zeros((2, 1, 4, 4), dtype=np.float32), r"torch\.from_numpy"),
        ([torch.zeros(1, 4, 4)], r"torch\.stack"),
        (DataLoader(TensorDataset(torch.zeros(2, 1, 4, 4))), r"dcn_plugin\.evaluate"),
        ("images", "torch.Tensor"),
        (None, "torch.Tensor"),
    ],
)
def test_images_that_are_no_tensor_are_refused_with_what_makes_one(given: object, fix: str) -> None:
    with pytest.raises(ImageRangeError, match=fix):
        PGD(0.1)(ModeNet(), given, torch.zeros(2, dtype=torch.int64))  # type: ignore[arg-type]
    with pytest.raises(ImageRangeError, match=fix):
        BoundaryAttack(max_queries=9)(
            ModeNet(),
            images(2),
            torch.zeros(2, dtype=torch.int64),
            starting_points=given if given is not None else "none",  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    "as_given",
    [
        Tensor.tolist,
        Tensor.numpy,
        lambda labels: labels.to(torch.uint8),
        lambda labels: labels.to(torch.int16),
        lambda labels: labels.numpy().astype(np.uint16),
        lambda labels: labels.numpy().astype(np.uint64),
        lambda labels: tuple(labels.tolist()),
    ],
)
def test_labels_of_every_integer_type_are_the_same_labels(as_given: Any) -> None:
    labels = torch.tensor([0, 1, 2, 1])
    expected = PGD(0.1, steps=2)(ModeNet(), images(4), labels)
    assert torch.equal(PGD(0.1, steps=2)(ModeNet(), images(4), as_given(labels)).images, expected.images)


@pytest.mark.parametrize(
    "labels", [torch.zeros(4), [0.0] * 4, ["a"] * 4, 0, None, "labels", torch.zeros(4, dtype=torch.bool), {0: 1}]
)
def test_labels_that_are_no_integers_are_refused_by_name(labels: object) -> None:
    with pytest.raises(LabelError):
        PGD(0.1)(ModeNet(), images(4), labels)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["resnet18", lambda x: x, ModeNet, None])
def test_what_is_no_module_is_refused_by_name(model: object) -> None:
    with pytest.raises(SpecError, match=r"torch\.nn\.Module"):
        PGD(0.1)(model, images(4), torch.zeros(4, dtype=torch.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("numbers", [{"batch_size": "4"}, {"batch_size": 2.0}, {"first_index": None}])
def test_a_batch_size_or_place_of_another_type_is_refused_by_name(numbers: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        PGD(0.1)(ModeNet(), images(4), torch.zeros(4, dtype=torch.int64), **numbers)
    assert PGD(0.1)(ModeNet(), images(4), torch.zeros(4, dtype=torch.int64), batch_size=np.int64(3))  # type: ignore[arg-type]


def test_an_ensemble_is_made_of_a_list_of_networks_and_of_numbers() -> None:
    models = [linear_model(16), linear_model(16, seed=1)]
    assert EnsembleSource(models, weights=[np.float32(1), torch.tensor(3)]).weights == (0.25, 0.75)  # type: ignore[list-item]
    assert len(EnsembleSource(nn.ModuleList(models)).models) == 2
    with pytest.raises(SpecError, match=r"a list of nn\.Module"):
        EnsembleSource(models[0])  # type: ignore[arg-type]
    for weights in (["1", "3"], [True, False], [None, 1]):
        with pytest.raises(SpecError, match="numbers"):
            EnsembleSource(models, weights)  # type: ignore[arg-type]
