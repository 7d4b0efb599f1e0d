from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import whitebox
from tests.evaluate.conftest import Asked


def test_counts_agree_with_attacking_image_by_image(models: dict[str, Asked], data: ImageSet) -> None:
    attack = PGD(0.1, steps=3)
    (result,) = whitebox({"b": models["b"]}, [attack], data, seed=0, batch_size=30)
    right = held = 0
    for image, label in zip(data.images, data.labels, strict=True):
        made = attack(models["b"], image[None], label[None])
        right += bool(made.correct)
        held += bool(made.correct) and not bool(made.fooled)
    assert (result.n_clean_correct, result.n_counted, result.n_defended, result.n_correct) == (right, right, held, held)
    assert 0 < held < right < result.n_total
    assert (result.source, result.target, result.relation) == ("b", "b", "same network")


def test_records_come_target_by_target(models: dict[str, Asked], data: ImageSet) -> None:
    found = whitebox(models, [PGD(0.1, steps=1), PGD(0.2, steps=1)], data, seed=0)
    assert [(r.target, r.eps) for r in found] == [("a", 0.1), ("a", 0.2), ("b", 0.1), ("b", 0.2)]


def test_a_target_that_gets_nothing_right_has_no_rate_and_raises_nothing(data: ImageSet) -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (
                torch.nn.functional.one_hot(torch.full((len(x),), 3), 4).float() * 5 + 0 * x.flatten(1).sum(1)[:, None]
            )

    four = dataclasses.replace(data, num_classes=4)
    (result,) = whitebox({"never": Never()}, [PGD(0.1, steps=1)], four, seed=0)
    assert (result.n_clean_correct, result.n_counted, result.defense_rate, result.accuracy_all) == (0, 0, None, 0.0)


def test_no_target_is_an_error(data: ImageSet) -> None:
    with pytest.raises(SpecError, match="nothing to measure"):
        next(whitebox({}, [PGD(0.1)], data, seed=0))
