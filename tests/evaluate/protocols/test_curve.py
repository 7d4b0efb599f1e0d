from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dcn_plugin.attacks import CW, PGD, HopSkipJump
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import RunDirectory, robustness_curve, whitebox
from dcn_plugin.evaluate.protocols.curve import DEFAULT_LEVELS
from tests.evaluate.conftest import Asked

ATTACK = CW(steps=60, step_size=0.02, bisections=2)
LEVELS = [0.05, 0.2, 0.8]


def test_an_image_is_lost_at_every_radius_that_its_adversarial_image_lies_within(
    models: dict[str, Asked], data: ImageSet
) -> None:
    records = list(robustness_curve({"b": models["b"]}, [ATTACK], data, LEVELS, training_seed=3, batch_size=30))
    result = ATTACK(models["b"], data.images, data.labels)
    lengths = (result.images - data.images).double().flatten(1).norm(dim=1)
    for record, radius in zip(records, LEVELS, strict=True):
        lost = [bool(fooled) and float(length) <= radius for fooled, length in zip(result.fooled, lengths, strict=True)]
        held = sum(bool(right) and not gone for right, gone in zip(result.correct, lost, strict=True))
        assert (record.eps, record.n_defended, record.n_correct) == (radius, held, held)
        assert record.n_counted == record.n_clean_correct == int(result.correct.sum())
        assert (record.protocol, record.seed, record.relation) == ("curve", 3, "same network")
        assert record.figures["median_length"] == pytest.approx(float(lengths[result.fooled].quantile(0.5)))
        assert record.figures["n_not_fooled"] == int((result.correct & ~result.fooled).sum())
        assert record.n_backward_passes == int(result.backward_passes.sum())
        assert record.n_forward_passes == int(result.queries.sum())
    held_at = [record.n_correct for record in records]
    assert held_at[0] > held_at[1] > held_at[2]  # type: ignore[operator]


def test_it_lies_at_or_below_what_an_attack_in_a_ball_of_the_norm_leaves(
    models: dict[str, Asked], data: ImageSet
) -> None:
    # On a linear model PGD ends in the worst corner of each ball: no curve can lie below it, and a good one lies near.
    target = {"b": models["b"]}
    levels = [0.02, 0.05, 0.1]
    attack = HopSkipJump(max_queries=600, norm="linf")
    curve = [r.n_correct for r in robustness_curve(target, [attack], data, levels, training_seed=0)]
    ball = [r.n_correct for r in whitebox(target, [PGD(eps, steps=5) for eps in levels], data, training_seed=0)]
    for above, exact in zip(curve, ball, strict=True):
        assert exact <= above <= exact + 8  # type: ignore[operator]


def test_without_radii_those_of_the_norm_are_reported(models: dict[str, Asked], data: ImageSet) -> None:
    few = data.subset(torch.arange(5))
    attacks = [HopSkipJump(max_queries=60, norm="l2"), HopSkipJump(max_queries=60, norm="linf")]
    records = list(robustness_curve({"b": models["b"]}, attacks, few, training_seed=0))
    assert [record.eps for record in records] == [*DEFAULT_LEVELS["l2"], *DEFAULT_LEVELS["linf"]]


def test_other_radii_of_a_stored_run_attack_nothing_anew(
    models: dict[str, Asked], data: ImageSet, tmp_path: Path
) -> None:
    store = RunDirectory(tmp_path)
    first = list(robustness_curve({"b": models["b"]}, [ATTACK], data, [0.2], training_seed=0, store=store))
    rows = models["b"].rows
    again = list(robustness_curve({"b": models["b"]}, [ATTACK], data, [0.2, 0.4], training_seed=0, store=store))
    assert again[0].n_correct == first[0].n_correct
    assert models["b"].rows - rows <= 1  # whether it takes the images


def test_what_gives_no_curve_is_refused_at_the_call(models: dict[str, Asked], data: ImageSet) -> None:
    with pytest.raises(SpecError, match="without a bound"):
        robustness_curve(models, [PGD(0.1)], data, LEVELS, training_seed=0)
    for levels in ([], [0.0], [-1.0], [float("nan")]):
        with pytest.raises(SpecError, match="radi"):
            robustness_curve(models, [ATTACK], data, levels, training_seed=0)
