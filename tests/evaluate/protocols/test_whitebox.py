from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import CW, PGD
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


@pytest.mark.filterwarnings("ignore::dcn_plugin.errors.WeakAttackWarning")
def test_the_record_carries_the_largest_change_in_the_norm_of_the_attack(
    models: dict[str, Asked], data: ImageSet
) -> None:
    weak, l2 = PGD(0.2, steps=2, step_size=0.03), CW(steps=20, step_size=0.05, bisections=0)
    found = whitebox({"b": models["b"]}, [PGD(0.2, steps=2), weak, l2], data, seed=0, batch_size=30)
    far, near, length = (result.largest_change for result in found)
    assert (far, near) == (pytest.approx(0.2), pytest.approx(0.06))
    moves = l2(models["b"], data.images, data.labels).images - data.images
    assert length == pytest.approx(float(moves.flatten(1).norm(dim=1).max()))
    # As the target saw the images: with 8 bits 0.06 is 15.3 grey levels.
    (rounded,) = whitebox({"b": models["b"]}, [weak], data, seed=0, rounding="8bit")
    assert rounded.largest_change is not None
    assert 0.06 < rounded.largest_change <= 0.06 + 0.5 / 255 + 1e-6


def test_the_record_counts_the_passes_of_the_attack(models: dict[str, Asked], data: ImageSet) -> None:
    (result,) = whitebox({"b": models["b"]}, [PGD(0.1, steps=3)], data, seed=0, batch_size=30)
    # Three steps and the check of the clean image; of those that are right when clean, the check of the result.
    assert result.n_forward_passes == 4 * 80 + result.n_clean_correct  # type: ignore[operator]
    assert result.n_backward_passes == 3 * 80


def test_no_target_is_an_error(data: ImageSet) -> None:
    with pytest.raises(SpecError, match="nothing to measure"):
        next(whitebox({}, [PGD(0.1)], data, seed=0))
