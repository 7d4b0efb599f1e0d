"""Bandwidths that compete: what each holds, which is chosen, and what is learned, against exact answers."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import BoundaryAttack, HopSkipJump, SampleStreams
from dcn_plugin.attacks.bands import Bands, Race, RacedNoise, Spectra, bandwidths, precision
from dcn_plugin.attacks.decision import DecisionAttack
from dcn_plugin.attacks.noise import OrthogonalNoise
from dcn_plugin.errors import SpecError
from tests.attack_oracles import Counting, RowNet, right
from tests.toys import images

GREY16 = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
COLOUR = torch.zeros(1, 3, 32, 32, dtype=torch.float64)


def shares(like: Tensor) -> list[tuple[int, bool]]:
    """(frequencies a side, grey) of each bandwidth."""
    return [(round(each.share * min(like.shape[2:])), each.grey) for each in bandwidths(like)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 4, 4), [(4, False)]),
        ((1, 12, 40), [(12, False)]),
        ((1, 16, 16), [(8, False), (16, False)]),
        ((1, 28, 28), [(8, False), (13, False), (28, False)]),
        ((4, 16, 20), [(8, False), (16, False)]),
        ((3, 16, 16), [(8, True), (8, False), (16, True), (16, False)]),
    ],
)
def test_bandwidths_go_from_eight_frequencies_a_side_to_full_resolution(
    shape: tuple[int, int, int], expected: list[tuple[int, bool]]
) -> None:
    assert shares(torch.zeros(1, *shape)) == expected


def test_a_bandwidths_directions_lie_in_its_bands_and_fill_them() -> None:
    for like in (GREY16, COLOUR, torch.zeros(1, 3, 20, 33, dtype=torch.float64)):
        widths = bandwidths(like)
        bands, streams = Bands(like, widths), SampleStreams("test", 0, range(1))
        assert bands.sizes.sum() == like[0].numel()
        assert bands.expected.sum() == pytest.approx(1)
        for width, members in zip(widths, bands.members, strict=True):
            rows = np.zeros(200, dtype=np.int64)
            moves, squares = width.noise(streams, like).directions(rows, np.arange(200))
            energies = bands.energies(bands.coefficients(moves))
            np.testing.assert_allclose(energies[:, ~members], 0, atol=1e-18 * like[0].numel())
            np.testing.assert_allclose(energies.sum(axis=1), squares, rtol=1e-6)
            np.testing.assert_allclose(energies[:, members].mean(axis=0), bands.sizes[members], rtol=0.06)


def test_the_transform_is_scipys_and_comes_back() -> None:
    moves = images(3, shape=(3, 9, 20), dtype=torch.float64)
    bands = Bands(moves, bandwidths(moves))
    found = bands.coefficients(moves.flatten(1))
    expected = scipy.fft.dctn(moves.numpy(), axes=(1, 2, 3), norm="ortho")
    np.testing.assert_allclose(found.view(3, 3, 9, 20).numpy(), expected, atol=1e-12)
    torch.testing.assert_close(bands.moves(found), moves.flatten(1))
    assert torch.equal(bands.coefficients(moves[1:2].flatten(1)), found[1:2])  # whatever is beside it


@pytest.mark.parametrize("probes", [20, 60, 100, 400])
def test_the_precision_is_nearly_that_of_estimates_from_signs(probes: int) -> None:
    streams, width = SampleStreams("test", 0, range(200)), 60
    noise = OrthogonalNoise(streams, torch.zeros(200, width, dtype=torch.float64))
    gradients = torch.randn(200, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows, numbers = np.repeat(np.arange(200), probes), np.tile(np.arange(probes), 200)
    moves = noise.directions(rows, np.zeros_like(rows), numbers)[0].view(200, probes, width)
    estimates = (moves * (moves @ gradients.unsqueeze(2)).sign()).sum(1)
    squared = torch.cosine_similarity(estimates, gradients).square().mean()
    assert float(precision(np.array([probes]), width)[0]) == pytest.approx(float(squared), rel=0.06)


def test_above_the_widest_orthogonal_directions_precision_counts_their_overlaps() -> None:
    told = 2 / np.pi * 3000 / 3000
    assert precision(np.array([3000]), 3000)[0] == pytest.approx(told / (1 + told))


def with_parts(like: Tensor, parts: list[list[float]]) -> Spectra:
    spectra = Spectra(Bands(like, bandwidths(like)), len(parts))
    spectra.parts = np.array(parts)
    return spectra


def test_the_bandwidth_is_chosen_for_each_sample_by_what_probes_tell_and_where_its_gradient_lies() -> None:
    # 64 coefficients against 256: few probes tell more of the low ones, many exhaust them.
    spectra = with_parts(GREY16, [[0.9, 0.1], [0.5, 0.5], [0.1, 0.9]])
    assert spectra.choose(np.array([64, 64, 64])).tolist() == [0, 0, 1]
    assert spectra.choose(np.array([400, 400, 400])).tolist() == [0, 1, 1]


def estimate(like: Tensor, gradients: Tensor, probes: int) -> Tensor:
    """The sum of probes of full resolution, with the signs of their slopes."""
    count = len(gradients)
    noise = bandwidths(like)[-1].noise(SampleStreams("test", 1, range(count)), like.expand(count, -1, -1, -1))
    rows, numbers = np.repeat(np.arange(count), probes), np.tile(np.arange(probes), count)
    moves = noise.directions(rows, np.zeros_like(rows), numbers)[0].view(count, probes, -1)
    return (moves * (moves @ gradients.unsqueeze(2)).sign()).sum(1)


def drawn(bands: Bands, parts: list[float], count: int) -> Tensor:
    """Gradients that have these parts of their energy in the bands."""
    dimensions = int(bands.sizes.sum())
    numbers = torch.randn(count, dimensions, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return bands.moves(bands.scaled(numbers, np.tile(np.sqrt(np.array(parts) / bands.sizes), (count, 1))))


@pytest.mark.parametrize("low", [0.15, 0.5, 0.85])
def test_the_parts_are_learned_from_estimates_and_noise_is_damped(low: float) -> None:
    count, probes = 40, 200
    spectra = Spectra(Bands(GREY16, bandwidths(GREY16)), count)
    bands = spectra._bands
    gradients = drawn(bands, [low, 1 - low], count)
    found = estimate(GREY16, gradients, probes)
    everything = np.full(count, 1)
    for _ in range(4):
        better = spectra.learn(found, everything, np.full(count, probes))
    assert abs(spectra.parts[:, 0].mean() - low) < 0.1
    before, after = (torch.cosine_similarity(each, gradients).mean() for each in (found, better))
    assert after > before - 0.002
    if low > 0.8:
        assert after > before + 0.02


def test_what_a_hop_follows_is_gone_and_other_bandwidths_take_over() -> None:
    spectra = with_parts(GREY16, [[0.6, 0.4], [0.6, 0.4]])
    probes = np.array([64, 64])
    assert spectra.choose(probes).tolist() == [0, 0]
    low = drawn(spectra._bands, [1, 0], 2)
    spectra.learn(low, np.array([0, 0]), probes)
    assert (spectra.parts[:, 0] < 0.45).all()
    assert spectra.choose(np.array([128, 128])).tolist() == [1, 1]
    spectra.keep(np.array([False, True]))
    assert spectra.parts.shape == (1, 2)
    for _ in range(100):  # nothing is ever given up for good
        spectra.deplete(np.array([0]), np.array([0.0]))
    assert spectra.parts[0, 0] > 0.02
    assert spectra.parts.sum() == pytest.approx(1)


def test_an_estimate_of_zero_changes_nothing_into_nan() -> None:
    spectra = Spectra(Bands(COLOUR, bandwidths(COLOUR)), 1)
    better = spectra.learn(torch.zeros(1, 3072, dtype=torch.float64), np.array([7]), np.array([96]))
    assert (better == 0).all()
    assert np.isfinite(spectra.parts).all()
    assert spectra.parts.sum() == pytest.approx(1)


def run(gains: np.ndarray, directions: int) -> np.ndarray:
    """How often each kind is chosen where kind k of sample m brings gains[m, k]."""
    count, kinds = gains.shape
    race, chosen = Race(kinds, count), np.zeros(gains.shape, dtype=int)
    for _ in range(directions):
        chosen[np.arange(count), race.kind] += 1
        race.record(gains[np.arange(count), race.kind], np.ones(count, dtype=bool))
    return chosen


def test_directions_go_to_the_kind_that_brings_most_on_this_sample() -> None:
    gains = np.array([[0.02, 0.01, 0.01], [0.01, 0.01, 0.03], [0, 0, 0], [0.01, 0.01, 0.01]])
    chosen = run(gains, 1000)
    assert chosen[0, 0] > 750
    assert chosen[1, 2] > 850
    assert (chosen >= 30).all()  # the others are heard, should that change
    assert (abs(chosen[3] - 1000 / 3) < 3).all()
    alone = run(gains[1:2], 1000)
    assert (alone == chosen[1]).all()  # whatever is beside it


def test_the_leader_of_a_race_changes_when_its_gains_do() -> None:
    race = Race(2, 1)
    chosen = []
    for i in range(2000):
        gains = (0.02, 0.01) if i < 1000 else (0.001, 0.01)
        chosen.append(int(race.kind[0]))
        race.record(np.array([gains[chosen[-1]]]), np.array([True]))
    assert sum(chosen[500:1000]) < 100
    assert sum(chosen[1500:]) > 400


def test_a_direction_keeps_its_kind_until_it_is_over_and_one_kind_needs_no_race() -> None:
    race = Race(2, 2)
    before = race.kind.copy()
    for _ in range(10):
        race.record(np.zeros(2), np.array([False, False]))
        assert (race.kind == before).all()
    race.record(np.zeros(2), np.array([True, False]))
    assert (race.kind == before).tolist() == [False, True]
    race.keep(np.array([True, False]))
    assert race.kind.shape == (1,)
    single = Race(1, 3)
    single.record(np.ones(3), np.ones(3, dtype=bool))
    assert single.kind.tolist() == [0, 0, 0]


def test_raced_directions_are_those_of_their_bandwidths() -> None:
    like = torch.zeros(3, 3, 16, 16, dtype=torch.float64)
    streams = SampleStreams("test", 0, range(3))
    noise = RacedNoise(streams, like)
    rows, counters, kind = np.array([0, 1, 2, 0]), np.array([4, 9, 2, 5]), np.array([3, 0, 3, 2])
    moves, squares = noise.directions(rows, counters, kind)
    for i, (row, counter, which) in enumerate(zip(rows, counters, kind, strict=True)):
        table = bandwidths(like)[which].noise(streams, like)
        expected, square = table.directions(np.array([row]), np.array([counter]))
        assert torch.equal(moves[i], expected[0])
        assert squares[i] == square[0]


def distances(kind: type[BoundaryAttack] | type[HopSkipJump], *, low: bool, settings: tuple[Any, ...]) -> list[float]:
    """Median L2 distance with each setting, on a model that reads low frequencies alone, or white noise."""
    shape = (1, 16, 16)
    model = nn.Sequential(nn.AvgPool2d(4), RowNet((1, 4, 4))) if low else RowNet(shape)
    clean = images(12, shape=shape, dtype=torch.float64)
    truth = right(model, clean)
    return [kind(max_queries=1000, coarse=each)(model, clean, truth).median_distance ** 0.5 for each in settings]


@pytest.mark.parametrize("low", [True, False], ids=["reads low frequencies", "reads white noise"])
def test_hopskipjumps_contest_is_as_good_as_the_better_bet_whatever_the_model_reads(low: bool) -> None:
    contest, *bets = distances(HopSkipJump, low=low, settings=("compete", 1, None))
    assert contest < 1.03 * min(bets)


@pytest.mark.slow
def test_the_walks_contest_wins_on_low_frequencies_and_is_not_lost_on_white_noise() -> None:
    contest, *bets = distances(BoundaryAttack, low=True, settings=("compete", 1, 2))
    assert contest < min(bets)
    contest, *bets = distances(BoundaryAttack, low=False, settings=("compete", 1, 2))
    assert contest < 1.4 * min(bets)


@pytest.mark.parametrize("attack", [BoundaryAttack(max_queries=150), HopSkipJump(max_queries=300)], ids=["b", "h"])
def test_images_do_not_depend_on_how_the_batch_is_cut_and_budgets_are_exact(attack: DecisionAttack) -> None:
    model, clean = Counting(RowNet((3, 16, 16))), images(5, shape=(3, 16, 16), dtype=torch.float64)
    truth = right(model, clean)
    model.rows = 0
    whole = attack(model, clean, truth)
    assert attack.settings["coarse"] == "compete"
    assert whole.fooled.all()
    assert model.rows == int(whole.queries.sum())
    assert int(whole.queries.max()) <= attack.settings["max_queries"]  # type: ignore[operator]
    for pieces in ((0, 2, 5), (0, 1, 4, 5)):
        parts = [
            attack(model, clean[first:last], truth[first:last], first_index=first)
            for first, last in itertools.pairwise(pieces)
        ]
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.queries for part in parts]), whole.queries)


@pytest.mark.parametrize("make", [BoundaryAttack, HopSkipJump])
def test_another_word_is_refused_and_the_word_is_named(make: type[BoundaryAttack] | type[HopSkipJump]) -> None:
    with pytest.raises(SpecError, match="compete"):
        make(coarse="competing")  # type: ignore[arg-type]
