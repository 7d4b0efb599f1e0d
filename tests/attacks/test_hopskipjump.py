from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import BoundaryAttack, HopSkipJump, SampleStreams
from dcn_plugin.attacks.base import AttackRun
from dcn_plugin.attacks.decision import LEAST_PUSH, PUSH
from dcn_plugin.attacks.hopskipjump import BISECTION, ROUGHLY, _coarsest, _sum_block, _tables
from dcn_plugin.errors import SpecError
from tests.attack_oracles import RowNet, closest_boundary, grey, right
from tests.toys import images, linear_model


def plane(*, seed: int = 0) -> tuple[nn.Module, nn.Linear]:
    """A linear model of two classes: its adversarial side is convex."""
    model = linear_model(16, classes=2, seed=seed, dtype=torch.float64)
    layer = model[1]  # type: ignore[index]
    assert isinstance(layer, nn.Linear)
    return model, layer


@pytest.mark.parametrize("probes", ["tangent", "sphere"])
def test_inside_the_cube_it_finds_the_closest_point_of_a_plane(probes: str) -> None:
    (model, layer), clean = plane(), grey(16)
    truth = right(model, clean)
    attack = HopSkipJump(max_queries=5000, probes=probes, coarse=2)  # type: ignore[arg-type]
    result = attack(model, clean, truth)
    found = (result.distance * 16 / closest_boundary(layer, clean, truth)).sqrt()
    assert (found >= 1 - 1e-9).all()
    assert (found < 1.01).all()


def test_at_the_edges_of_the_cube_it_finds_it_too() -> None:
    (model, layer), clean = plane(), images(16, dtype=torch.float64)
    truth = right(model, clean)
    result = HopSkipJump(max_queries=5000)(model, clean, truth)
    found = (result.distance * 16 / closest_boundary(layer, clean, truth)).sqrt()
    assert (found >= 1 - 1e-9).all()
    assert (found < 1.02).all()


def test_it_ends_on_the_boundary_as_precisely_as_its_bisection() -> None:
    (model, _), clean = plane(), grey(16)
    truth = right(model, clean)
    result = HopSkipJump(max_queries=None, steps=8)(model, clean, truth)
    assert result.fooled.all()
    share = BISECTION * 0.01 / 4 + (LEAST_PUSH / result.distance.sqrt()).clamp(min=PUSH)  # D = 16; and the last push
    assert share.median() < 0.5 * ROUGHLY
    inside = clean + (1 - 1.01 * share).view(-1, 1, 1, 1) * (result.images - clean)
    assert (model(inside).argmax(1) == truth).all()


def test_in_the_linf_norm_it_finds_the_smallest_largest_change() -> None:
    (model, layer), clean = plane(), grey(16)
    truth = right(model, clean)
    result = HopSkipJump(max_queries=5000, norm="linf")(model, clean, truth)
    # To cross a plane w x + b = 0 every pixel moves by the same |w x + b| / ||w||_1.
    weight, bias = (layer.weight[1] - layer.weight[0]).detach(), (layer.bias[1] - layer.bias[0]).detach()
    exact = (clean.flatten(1) @ weight + bias).abs() / weight.abs().sum()
    found = (result.images - clean).flatten(1).abs().amax(1) / exact
    assert (found >= 1 - 1e-9).all()
    assert (found < 1.03).all()


def test_with_as_many_queries_it_ends_closer_than_the_boundary_attack() -> None:
    model, clean = RowNet((3, 8, 8)), images(12, shape=(3, 8, 8), dtype=torch.float64)
    truth = right(model, clean)
    # The weights are white noise: coarse probes would only cost queries.
    hop, walk = (
        kind(model, clean, truth) for kind in (HopSkipJump(max_queries=600, coarse=1), BoundaryAttack(max_queries=600))
    )
    assert hop.median_distance < 0.8 * walk.median_distance


def test_tangent_probes_end_closer_than_published_ones() -> None:
    model, clean = RowNet((3, 8, 8)), images(16, shape=(3, 8, 8), dtype=torch.float64)
    truth = right(model, clean)
    tangent, sphere = (
        HopSkipJump(max_queries=600, probes=probes)(model, clean, truth).median_distance  # type: ignore[arg-type]
        for probes in ("tangent", "sphere")
    )
    assert tangent < sphere


def test_coarse_probes_save_queries_where_the_model_looks_at_low_frequencies() -> None:
    shape = (1, 16, 16)
    model, clean = nn.Sequential(nn.AvgPool2d(4), RowNet((1, 4, 4))), images(12, shape=shape, dtype=torch.float64)
    truth = right(model, clean)
    coarse, fine = (
        HopSkipJump(max_queries=400, coarse=factor)(model, clean, truth).median_distance for factor in (2, 1)
    )
    assert coarse < 0.8 * fine


@pytest.mark.parametrize("coarse", [2, 3, 4])
def test_fine_probes_follow_where_the_model_looks_at_high_frequencies(coarse: int) -> None:
    class Checkers(nn.Module):
        """Sees nothing but a chessboard pattern, which no coarse probe contains."""

        def forward(self, x: Tensor) -> Tensor:
            sign = torch.ones(x.shape[2:], dtype=x.dtype)
            sign[::2, ::2] = sign[1::2, 1::2] = -1
            seen = (x * sign).sum((1, 2, 3)) - 0.5
            return torch.stack([-seen, seen], dim=1)

    clean = torch.full((4, 1, 8, 8), 0.5, dtype=torch.float64)
    result = HopSkipJump(max_queries=3000, coarse=coarse)(Checkers(), clean, torch.zeros(4, dtype=torch.int64))
    exact = 0.5**2 / 64 / 64
    assert (result.distance >= exact).all()
    assert (result.distance < 1.1 * exact).all()


@pytest.mark.parametrize(
    ("shape", "coarse"), [((3, 224, 224), 4), ((3, 32, 32), 4), ((1, 28, 28), 2), ((1, 16, 40), 2), ((1, 15, 15), 1)]
)
def test_the_first_probes_are_as_coarse_as_the_images_allow(shape: tuple[int, int, int], coarse: int) -> None:
    assert _coarsest(torch.zeros(1, *shape)) == coarse


@pytest.mark.parametrize(("coarse", "sides"), [(4, [8, 13, 21, 32]), (3, [11, 18, 32]), (2, [16, 32]), (1, [32])])
def test_probes_have_more_frequencies_level_by_level(coarse: int, sides: list[int]) -> None:
    clean, labels = torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.int64)
    run = AttackRun(RowNet((1, 32, 32)), clean, labels, SampleStreams("HopSkipJump", 0, range(1)))
    found = []
    for table in _tables(run, clean.flatten(1), coarse):
        probe, _ = table.directions(np.array([0]), np.array([0]), np.array([0]))
        seen = abs(scipy.fft.dctn(probe.view(32, 32).numpy(), norm="ortho")) > 1e-3
        assert seen.nonzero()[0].max() == seen.nonzero()[1].max()
        found.append(seen.nonzero()[0].max() + 1)
    assert found == sides


def test_coarse_is_chosen_by_the_size_of_the_images() -> None:
    model, clean = RowNet((1, 16, 16)), images(3, shape=(1, 16, 16), dtype=torch.float64)
    truth = right(model, clean)
    chosen, two, one = (HopSkipJump(max_queries=300, coarse=n)(model, clean, truth).images for n in (None, 2, 1))
    assert torch.equal(chosen, two)
    assert not torch.equal(chosen, one)


class Valley(nn.Module):
    """Its wrong class lies beyond a paraboloid, 1 from the grey image (1, 16, 16) and curved more in some ways."""

    def __init__(self) -> None:
        super().__init__()
        numbers = torch.randn(256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.register_buffer("axes", torch.linalg.qr(numbers)[0])
        self.register_buffer("curvature", torch.linspace(5, 50, 255, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        seen = (x.flatten(1) - 0.5) @ self.axes
        beyond = seen[:, 0] - 1 - self.rise(seen[:, 1:])
        return torch.stack([-beyond, beyond], dim=1)

    def rise(self, sideways: Tensor) -> Tensor:
        return (self.curvature / 2 * sideways.square()).sum(1)


def test_it_finds_the_closest_point_where_the_boundary_curves_away() -> None:
    model = Valley()
    sideways = torch.randn(8, 255, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sideways *= 0.3 / sideways.norm(dim=1, keepdim=True)
    beyond = model.rise(sideways)[:, None] + 1.05
    starts = (torch.cat([beyond, sideways], dim=1) @ model.axes.T + 0.5).view(8, 1, 16, 16)
    attack = HopSkipJump(max_queries=2500, coarse=1, scouts=1)
    result = attack(model, torch.full_like(starts, 0.5), torch.zeros(8, dtype=torch.int64), starting_points=starts)
    found = (result.distance * 256).sqrt()
    assert (found >= 1 - 1e-9).all()
    # With the centre of its probes on the boundary, nearly all of which are then not adversarial, it ends at 1.033.
    assert (found < 1.022).all()


def test_a_number_of_steps_ends_it_too() -> None:
    model, clean = RowNet(), images(6, dtype=torch.float64)
    truth = right(model, clean)
    one, three = (
        HopSkipJump(max_queries=None, steps=steps, initial_probes=100)(model, clean, truth) for steps in (1, 3)
    )
    assert (one.queries >= 100).all()
    assert (one.queries < 200 + 60).all()
    assert (three.queries > one.queries).all()
    assert (three.distance <= one.distance + 1e-12).all()


def test_sums_do_not_depend_on_how_many_samples_there_are() -> None:
    values = torch.rand(5, 32, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_sum_block(values), values.sum(1))
    for i in range(5):
        assert torch.equal(_sum_block(values[i : i + 1])[0], _sum_block(values)[i])


def test_a_model_with_one_answer_around_the_start_does_not_break_it() -> None:
    class Corner(nn.Module):
        """Wrong only where the first pixel is almost 1: probes seldom find it."""

        def forward(self, x: Tensor) -> Tensor:
            first = x[:, 0, 0, 0] - 0.999
            return torch.stack([-first, first], dim=1)

    clean = grey(4)
    starts = torch.ones_like(clean)
    result = HopSkipJump(max_queries=400)(Corner(), clean, torch.zeros(4, dtype=torch.int64), starting_points=starts)
    assert result.fooled.all()
    exact = (0.999 - clean[:, 0, 0, 0]).square() / 16
    assert (result.distance >= exact - 1e-12).all()
    assert np.isfinite(result.median_distance)
    assert math.isfinite(float(result.images.sum()))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_queries": None},
        {"max_queries": 2},
        {"steps": 0},
        {"norm": "l1"},
        {"probes": "none"},
        {"initial_probes": 1},
        {"initial_probes": 200, "max_probes": 100},
        {"coarse": 0},
        {"coarse": 1.5},
        {"coarse": math.nan},
        {"coarse": True},
        {"theta": 0.0},
        {"theta": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        HopSkipJump(**bad)  # type: ignore[arg-type]
