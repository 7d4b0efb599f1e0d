from __future__ import annotations

import contextlib
import itertools
import types

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import BoundaryAttack, SampleStreams
from dcn_plugin.attacks.boundary import _Directions, _Window
from dcn_plugin.attacks.noise import CoarseNoise, NoiseTable
from dcn_plugin.errors import SpecError
from tests.attack_oracles import RowNet, closest_boundary, grey, right
from tests.toys import images, linear_model


class Brightness(nn.Module):
    """Class 1 for images that are brighter than grey, of whatever size."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.flatten(1).mean(1) - 0.5
        return torch.stack([-bright, bright], dim=1)


def excess(attack: BoundaryAttack, clean: Tensor, *, seed: int = 0) -> Tensor:
    """L2 distance found over the exact one, on a linear model of two classes: its adversarial side is convex."""
    model = linear_model(16, classes=2, seed=seed, dtype=torch.float64)
    truth = right(model, clean)
    result = attack(model, clean, truth)
    assert result.fooled.all()
    layer = model[1]  # type: ignore[index]
    assert isinstance(layer, nn.Linear)
    return (result.distance * 16 / closest_boundary(layer, clean, truth)).sqrt()


def test_inside_the_cube_it_finds_the_closest_point_of_a_plane() -> None:
    found = excess(BoundaryAttack(max_queries=25_000), grey(16))
    assert (found >= 1 - 1e-9).all()
    assert (found < 1.005).all()


def test_at_the_edges_of_the_cube_it_comes_within_a_few_percent() -> None:
    found = excess(BoundaryAttack(max_queries=25_000), images(16, dtype=torch.float64))
    assert (found >= 1 - 1e-9).all()
    assert found.median() < 1.02
    assert found.max() < 1.1


def test_the_papers_settings_find_it_too() -> None:
    found = excess(BoundaryAttack.paper(steps=400), grey(3))
    assert (found >= 1 - 1e-9).all()
    assert (found < 1.05).all()


def test_the_papers_settings_are_those_of_foolbox_1() -> None:
    assert BoundaryAttack.paper().settings == {
        "adaptation": "window",
        "check_every": 10,
        "coarse": 1,
        "directions": 25,
        "eps": None,
        "max_queries": None,
        "restarts": 0,
        "scouts": 1,
        "seed": 0,
        "source_step": 0.01,
        "spherical_step": 0.01,
        "start_draws": 1000,
        "start_grid": 1000,
        "start_search": "linear",
        "step_adaptation": 1.5,
        "steps": 5000,
    }


def test_coarse_directions_save_queries_where_the_model_looks_at_low_frequencies() -> None:
    shape = (1, 16, 16)
    model, clean = nn.Sequential(nn.AvgPool2d(4), RowNet((1, 4, 4))), images(12, shape=shape, dtype=torch.float64)
    truth = right(model, clean)
    coarse, fine = (
        BoundaryAttack(max_queries=800, coarse=factor)(model, clean, truth).median_distance for factor in (2, 1)
    )
    assert coarse < 0.8 * fine


def test_every_fourth_direction_is_coarse_unless_coarse_is_one() -> None:
    rows, counters, kind = np.array([0, 1, 1, 0]), np.array([0, 4, 5, 7]), np.zeros(4, dtype=np.int64)
    clean = images(2, shape=(1, 8, 8), dtype=torch.float64)
    streams = SampleStreams("test", 0, range(2))
    run = types.SimpleNamespace(streams=streams, images=clean)
    plain, mixed = (_Directions(run, clean.flatten(1), coarse) for coarse in (1, 2))  # type: ignore[arg-type]
    fine, squares = NoiseTable(streams, clean.flatten(1)).directions(rows, counters)
    coarse, coarse_squares = CoarseNoise(streams, clean, 2).directions(rows, counters)
    found = plain.directions(rows, counters, kind)
    assert torch.equal(found[0], fine)
    assert (found[1] == squares).all()
    found = mixed.directions(rows, counters, kind)
    assert torch.equal(found[0], torch.cat([coarse[:2], fine[2:]]))
    assert found[1].tolist() == [*coarse_squares[:2], *squares[2:]]


@pytest.mark.parametrize("coarse", [1, 2, 50])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (1, 5, 7), (3, 1, 4)], ids=str)
def test_images_of_any_size_are_attacked(shape: tuple[int, int, int], coarse: int) -> None:
    # float32: where a direction lies along the gap, what is left of it sideways is rounding.
    model, clean = Brightness(), grey(6, shape=shape, dtype=torch.float32)
    truth = right(model, clean)
    result = BoundaryAttack(max_queries=1500, coarse=coarse)(model, clean, truth)
    assert result.fooled.all()
    closest = (clean.mean((1, 2, 3)).double() - 0.5).square()  # the same step of every pixel
    assert (result.distance >= closest * (1 - 1e-4)).all()
    assert (result.distance <= closest * 1.05 + 1e-6).all()


@pytest.mark.parametrize("adaptation", ["smooth", "window"])
def test_more_queries_never_end_farther_away(adaptation: str) -> None:
    model, clean = RowNet(), images(12, dtype=torch.float64)
    truth = right(model, clean)
    distances = [
        BoundaryAttack(max_queries=budget, adaptation=adaptation)(model, clean, truth).distance  # type: ignore[arg-type]
        for budget in (50, 200, 800)
    ]
    for fewer, more in itertools.pairwise(distances):
        assert (more <= fewer + 1e-12).all()
    assert distances[2].median() < 0.5 * distances[0].median()


def test_a_converged_sample_leaves_and_the_others_walk_on() -> None:
    model, clean = linear_model(16, classes=2, dtype=torch.float64), grey(6)
    queries = BoundaryAttack(max_queries=20_000)(model, clean, right(model, clean)).queries
    assert (queries < 20_000).all()
    assert len(queries.unique()) >= 4


def test_a_number_of_steps_ends_it_too() -> None:
    model, clean = RowNet(), images(6, dtype=torch.float64)
    truth = right(model, clean)
    few, more = (BoundaryAttack(max_queries=None, steps=steps)(model, clean, truth).queries for steps in (5, 50))
    assert (few < more).all()
    assert (few <= 1 + 1 + 10 + 5 * (25 + 9) + 2).all()


def test_progress_rises_to_the_end(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr("dcn_plugin.attacks.base.progress_bar", _recorder(told))
    model, clean = RowNet(), images(6, dtype=torch.float64)
    BoundaryAttack(max_queries=60)(model, clean, right(model, clean), batch_size=3, progress=True)
    assert told == sorted(told)
    assert told[-1] == 6
    assert len(told) > 20
    assert capsys.readouterr() == ("", "")


def _recorder(told: list[float]) -> object:
    return lambda *_, **__: contextlib.nullcontext(types.SimpleNamespace(reach=told.append))


def test_a_window_speaks_only_when_it_is_full_and_then_starts_afresh() -> None:
    window = _Window(np.zeros((3, 10), dtype=bool), np.zeros(3, dtype=np.int64))
    everyone = np.ones(3, dtype=bool)
    for i in range(10):
        assert window.verdict(everyone, 2.0).tolist() == [1, 1, 1]
        window.add(everyone, np.array([True, i < 4, i < 1]))  # 100 %, 40 %, 10 %
    assert window.verdict(np.array([False, True, True]), 2.0).tolist() == [1, 1, 0.5]
    assert window.verdict(everyone, 2.0).tolist() == [2, 1, 1]
    assert window.count.tolist() == [0, 10, 0]


@pytest.mark.parametrize(
    "bad",
    [
        {"max_queries": None},
        {"max_queries": 2},
        {"steps": 0},
        {"directions": 0},
        {"check_every": 0},
        {"coarse": 0},
        {"coarse": -2},
        {"coarse": 1.5},
        {"coarse": float("nan")},
        {"coarse": True},
        {"coarse": "half"},
        {"spherical_step": 0.0},
        {"source_step": 1.0},
        {"step_adaptation": 1.0},
        {"step_adaptation": float("nan")},
        {"adaptation": "none"},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        BoundaryAttack(**bad)  # type: ignore[arg-type]
