from __future__ import annotations

import statistics

import pytest
import torch

from dcn_plugin.attacks import CW, PGD, BoundaryAttack, HopSkipJump
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import RunDirectory, median_interval, minimal_distance
from tests.evaluate.conftest import Asked

ATTACK = HopSkipJump(max_queries=200)


def test_the_median_and_the_counts_are_those_of_the_single_images(models: dict[str, Asked], data: ImageSet) -> None:
    (result,) = minimal_distance({"b": models["b"]}, ATTACK, data, seed=2, count=None, batch_size=80)
    made = ATTACK(models["b"], data.images, data.labels)
    distances = made.distance[made.fooled].tolist()
    gaps = (made.images - data.images).double().square().flatten(1).mean(1)[made.fooled]
    torch.testing.assert_close(gaps, made.distance[made.fooled])
    assert result.figures["median_distance"] == pytest.approx(statistics.median(distances))
    assert result.figures["distance_low"] <= result.figures["median_distance"] <= result.figures["distance_high"]  # type: ignore[operator]
    assert result.n_counted == len(distances) > 20
    assert result.figures["mean_queries"] == pytest.approx(float(made.queries[made.correct].double().mean()))
    assert (result.protocol, result.seed, result.n_defended, result.n_correct) == ("hopskipjump", 2, None, None)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_the_first_images_that_the_target_has_right_are_attacked(
    models: dict[str, Asked], data: ImageSet, batch_size: int
) -> None:
    with torch.no_grad():
        right = models["b"](data.images).argmax(1) == data.labels
    upto = int(right.nonzero()[9]) + 1
    (result,) = minimal_distance({"b": models["b"]}, ATTACK, data, seed=0, count=10, batch_size=batch_size)
    assert (result.n_total, result.n_clean_correct, result.n_counted) == (upto, 10, 10)
    whole = ATTACK(models["b"], data.images[:upto], data.labels[:upto]).distance
    assert result.figures["median_distance"] == pytest.approx(float(whole[right[:upto]].median().item()), rel=0.2)


def test_fewer_right_images_than_wanted_are_all_attacked(models: dict[str, Asked], data: ImageSet) -> None:
    (result,) = minimal_distance({"b": models["b"]}, ATTACK, data, seed=0, count=10_000)
    assert result.n_total == len(data)
    assert result.n_counted == result.n_clean_correct < 80  # type: ignore[operator]


def test_a_failed_start_is_counted_and_has_no_distance(models: dict[str, Asked], data: ImageSet) -> None:
    with torch.no_grad():
        models["a"].model[1].weight.zero_()  # type: ignore[index, union-attr, operator]
        models["a"].model[1].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))  # type: ignore[index, union-attr, operator]
    attack = BoundaryAttack(max_queries=50, start_draws=5)
    (result,) = minimal_distance({"a": models["a"]}, attack, data, seed=0, count=None)
    assert result.n_clean_correct == result.n_failed_starts == int((data.labels == 0).sum()) > 0
    assert result.n_counted == 0
    assert result.figures["median_distance"] is None


def test_a_killed_run_goes_on_where_it_was(models: dict[str, Asked], data: ImageSet, tmp_path: object) -> None:
    store = RunDirectory(str(tmp_path))
    (first,) = minimal_distance({"b": models["b"]}, ATTACK, data, seed=0, count=20, batch_size=8, store=store)
    rows = models["b"].rows
    (again,) = minimal_distance({"b": models["b"]}, ATTACK, data, seed=0, count=20, batch_size=8, store=store)
    assert again == first
    assert models["b"].rows - rows <= 41  # the search for the 20 images alone, and the check before it


def test_an_attack_within_a_ball_has_no_distance_to_measure(models: dict[str, Asked], data: ImageSet) -> None:
    with pytest.raises(SpecError, match="without a bound"):
        next(minimal_distance(models, PGD(0.1), data, seed=0))
    with pytest.raises(SpecError, match="number of images"):
        next(minimal_distance(models, ATTACK, data, seed=0, count=0))


def test_cw_is_measured_the_same_way(models: dict[str, Asked], data: ImageSet) -> None:
    (result,) = minimal_distance({"b": models["b"]}, CW(steps=30, bisections=2), data, seed=0, count=5)
    assert result.protocol == "cw"
    assert result.figures["median_distance"] > 0  # type: ignore[operator]


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2000, 41, generator=generator)
    covered = 0
    for row in draws.tolist():
        low, high = median_interval(row)
        covered += low <= 0.5 <= high
    assert 0.94 <= covered / 2000 <= 0.99
    # Tables of order statistics: n = 41 at 95 % gives the 14th and the 28th value.
    ordered = sorted(draws[0].tolist())
    assert median_interval(ordered) == (ordered[13], ordered[27])
    assert median_interval([3.0]) == (3.0, 3.0)
    assert median_interval([2.0, 1.0, 5.0]) == (1.0, 5.0)
    with pytest.raises(SpecError):
        median_interval([])
