"""What the decision-based attacks share: starts, budgets, the last push."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dcn_plugin.attacks import AttackRun, BoundaryAttack, DecisionAttack, HopSkipJump, SampleStreams
from dcn_plugin.attacks.base import Rows
from dcn_plugin.attacks.decision import PUSH, Asker, StartSearch, blend, column, row_sums
from dcn_plugin.errors import ImageRangeError, SpecError
from tests.attack_oracles import Counting, RowNet, grey, right
from tests.toys import ModeNet, images, linear_model


class OnlyStart(DecisionAttack):
    """Stays where it starts."""

    def __init__(
        self,
        *,
        max_queries: int | None = 10_000,
        scouts: int = 1,
        restarts: int = 0,
        start_draws: int = 50,
        start_grid: int = 100,
        start_search: StartSearch = "bisection",
        seed: int = 0,
    ) -> None:
        super().__init__(
            max_queries=max_queries,
            steps=None,
            scouts=scouts,
            restarts=restarts,
            start_draws=start_draws,
            start_grid=start_grid,
            start_search=start_search,
            seed=seed,
        )

    def approach(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        return points


def _name(attack: DecisionAttack) -> str:
    return attack.name


class DarkIsOne(nn.Module):
    """Class 1 for dark images, class 0 for all others: noise is never dark."""

    def forward(self, x: Tensor) -> Tensor:
        dark = x.flatten(1).mean(1) - 0.1
        return torch.stack([dark, -dark], dim=1)


def first_blend_by_hand(model: nn.Module, clean: Tensor, truth: Tensor, *, grid: int, seed: int) -> Tensor:
    """Image by image: draw until the model is fooled, then blend from the clean side until it is again."""
    found = []
    for i, (x, y) in enumerate(zip(clean, truth, strict=True)):
        streams = SampleStreams("OnlyStart", seed, [i])
        while True:
            noise = streams.uniform(x[None], 0, 1)
            if model(noise).argmax(1) != y:
                break
        shares = (k / grid for k in range(1, grid + 1))
        found.append(next(p for s in shares if model(p := (1 - s) * x[None] + s * noise).argmax(1) != y))
    return torch.cat(found)


@torch.no_grad()
def test_the_linear_search_takes_the_first_adversarial_blend_seen_from_the_clean_image() -> None:
    model, clean = RowNet(), images(12, dtype=torch.float64)
    truth = right(model, clean)
    expected = first_blend_by_hand(model, clean, truth, grid=50, seed=3)
    found = OnlyStart(start_grid=50, start_search="linear", seed=3)(model, clean, truth)
    assert found.fooled.all()
    torch.testing.assert_close(found.images, expected + PUSH * (expected - clean), rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_bisection_ends_on_the_grid_next_to_a_blend_that_is_not_adversarial() -> None:
    model, clean = linear_model(16, dtype=torch.float64), images(12, dtype=torch.float64)
    truth = right(model, clean)
    linear, bisected = (OnlyStart(start_search=search)(model, clean, truth) for search in ("linear", "bisection"))
    # Along a line through three linear classes there is one border of the true one: both find it.
    torch.testing.assert_close(bisected.images, linear.images, rtol=0, atol=1e-12)
    assert (bisected.queries <= 50 + 7 + 3).all()
    assert bisected.queries.sum() < linear.queries.sum() / 2


@pytest.mark.parametrize(
    "attack", [OnlyStart(start_draws=3), BoundaryAttack(start_draws=3), HopSkipJump(start_draws=3)], ids=repr
)
def test_a_failed_start_is_flagged_and_harms_no_other_sample(attack: DecisionAttack) -> None:
    bright, dark = grey(3), grey(2) / 20
    clean, truth = torch.cat([bright, dark]), torch.tensor([0, 0, 0, 1, 1])
    result = attack(DarkIsOne(), clean, truth)
    assert result.status == ["no start"] * 3 + ["fooled"] * 2
    assert result.distance[:3].isnan().all()
    assert (result.distance[3:] > 0).all()
    assert torch.equal(result.images[:3], bright)
    assert result.queries[:3].tolist() == [4, 4, 4]  # the clean image and three draws
    assert result.counts == {"n_total": 5, "n_clean_correct": 5, "n_failed_starts": 3, "n_counted": 2}
    assert result.median_distance == float(result.distance[3:].mean())


@pytest.mark.parametrize(
    "attack", [OnlyStart(), BoundaryAttack(max_queries=100), HopSkipJump(max_queries=100)], ids=repr
)
def test_starting_points_take_the_place_of_noise(attack: DecisionAttack) -> None:
    bright, dark = grey(3), grey(2) / 20
    clean, truth = torch.cat([bright, dark]), torch.tensor([0, 0, 0, 1, 1])
    starts = torch.cat([torch.zeros_like(bright[:2]), bright[2:] / 2, torch.ones_like(dark)])
    result = attack(DarkIsOne(), clean, truth, starting_points=starts, batch_size=2)
    assert result.status == ["fooled", "fooled", "no start", "fooled", "fooled"]
    assert torch.equal(result.images[2], bright[2])
    assert (result.distance[[0, 1, 3, 4]] <= (starts - clean)[[0, 1, 3, 4]].square().mean((1, 2, 3)) + 1e-12).all()


def test_starting_points_that_are_no_images_are_refused() -> None:
    for bad in (torch.full((2, 1, 4, 4), 2.0), torch.zeros(3, 1, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.float64)):
        with pytest.raises(ImageRangeError):
            OnlyStart()(linear_model(16), images(2), torch.zeros(2, dtype=torch.int64), starting_points=bad)


@settings(max_examples=40)
@given(
    budget=st.integers(4, 90),
    batch_size=st.integers(1, 6),
    search=st.sampled_from(["bisection", "linear"]),
    hop=st.booleans(),
)
def test_no_budget_is_ever_exceeded(budget: int, batch_size: int, search: StartSearch, hop: bool) -> None:
    net = Counting(RowNet())
    clean = images(6, dtype=torch.float64)
    truth = right(net, clean)
    net.rows = 0
    attack: DecisionAttack
    if hop:
        attack = HopSkipJump(max_queries=budget, initial_probes=8, start_search=search)
    else:
        attack = BoundaryAttack(max_queries=budget, start_search=search)
    result = attack(net, clean, truth, batch_size=batch_size)
    assert result.queries.max() <= budget
    assert result.queries.sum() == net.rows
    assert (result.fooled | ~result.started).all()


@pytest.mark.parametrize("attack", [BoundaryAttack(max_queries=1500), HopSkipJump(max_queries=800)], ids=_name)
def test_results_stay_adversarial_when_the_model_is_asked_about_them_one_by_one(attack: DecisionAttack) -> None:
    model, clean = ModeNet(), images(30)  # float32, so that other batch sizes round differently
    truth = right(model, clean)
    result = attack(model, clean, truth)
    with torch.no_grad():
        alone = torch.cat([model(x[None]).argmax(1) for x in result.images])
    assert result.fooled.all()
    assert (alone != truth).all()


@pytest.mark.parametrize(
    "attack",
    [OnlyStart, pytest.param(BoundaryAttack, marks=pytest.mark.slow)],
    ids=["only start", "boundary"],
)
def test_restarts_end_no_farther_away_and_spend_what_is_left(attack: type[OnlyStart] | type[BoundaryAttack]) -> None:
    model, clean = RowNet(), images(10, dtype=torch.float64)
    truth = right(model, clean)
    once, again = (attack(max_queries=7000, scouts=1, restarts=n)(model, clean, truth) for n in (0, 2))
    assert (again.distance <= once.distance + 1e-12).all()
    assert (again.distance < 0.99 * once.distance).any()
    room = 3 * once.queries <= 7000  # for two more walks; long ones may leave too little for another
    assert room.sum() >= 4
    assert (again.queries[room] > 2 * once.queries[room]).all()
    assert again.queries.max() <= 7000


def test_the_scout_that_comes_closest_walks_on() -> None:
    model, clean = RowNet(), images(20, dtype=torch.float64)
    truth = right(model, clean)
    alone, best = (OnlyStart(scouts=scouts)(model, clean, truth) for scouts in (1, 4))
    assert (best.distance <= alone.distance + 1e-12).all()
    assert best.median_distance < 0.9 * alone.median_distance
    # Three more starts: a draw or more, and ten bisections on a grid of a hundred.
    assert (best.queries - alone.queries >= 3 * (1 + 6)).all()


class Textures(nn.Module):
    """Class 1 for fine noise, class 2 for images that are brighter on the left, class 0 for others."""

    def forward(self, x: Tensor) -> Tensor:
        fine = (x - nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)).abs().mean((1, 2, 3)) - 0.12
        left, right = x.mean((1, 2)).tensor_split(2, dim=1)
        return torch.stack([torch.zeros_like(fine), 5 * fine, left.mean(1) - right.mean(1) - 0.05], dim=1)


def test_scouts_reach_classes_that_noise_does_not_look_like() -> None:
    model, clean = Textures(), torch.full((12, 1, 16, 16), 0.5, dtype=torch.float64)
    truth = right(model, clean)
    alone, scouted = (OnlyStart(scouts=scouts)(model, clean, truth) for scouts in (1, 4))
    assert truth.tolist() == [0] * 12
    assert alone.fooled.all() and scouted.fooled.all()
    assert (model(alone.images).argmax(1) == 1).all()
    assert (model(scouted.images).argmax(1) == 2).sum() >= 6
    assert scouted.median_distance < 0.5 * alone.median_distance


@pytest.mark.parametrize("shape", [(3, 9, 6), (1, 3, 3), (1, 1, 2)])
def test_the_starts_of_scouts_depend_neither_on_the_batch_nor_on_the_size_of_images(
    shape: tuple[int, int, int],
) -> None:
    model = linear_model(shape[0] * shape[1] * shape[2], dtype=torch.float64)
    clean = images(9, shape=shape, dtype=torch.float64)
    truth = right(model, clean)
    whole, apart = (OnlyStart(scouts=3)(model, clean, truth, batch_size=size) for size in (64, 2))
    assert whole.fooled.any()
    assert torch.equal(whole.images, apart.images)
    assert torch.equal(whole.queries, apart.queries)


class Spendthrift(OnlyStart):
    """Asks until it may not, and notes how often it might."""

    scout_rounds = ((0.01, 2), (0.02, 1))

    def approach(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        allowed = asker.left(rows)
        self.allowed = [*getattr(self, "allowed", []), int(allowed[0])]
        while (asker.left(rows) > 0).any():
            asker.adversarial(points, rows)
        return points


def test_each_scout_has_its_share_of_the_budget_and_the_walk_has_the_rest() -> None:
    model, clean = RowNet(), images(1, dtype=torch.float64)
    attack = Spendthrift(max_queries=6000, scouts=3)
    result = attack(model, clean, right(model, clean))
    first, second, third, *rest, walk = attack.allowed
    assert first == 60
    assert all(50 <= left < 60 for left in (second, third))  # their starts are paid for, too
    assert rest == [120, 120]
    spent = 3 * 60 + 2 * 120
    assert 6000 - spent - 15 <= walk <= 6000 - spent
    assert result.queries.tolist() == [6000]


class Homing(OnlyStart):
    """The i-th walk goes straight towards the clean image and ends at the distance ``ends[i]``."""

    scout_rounds = ((0.01, 2), (0.01, 1))
    ends: tuple[float, ...] = ()

    def approach(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        self.seen = [*getattr(self, "seen", []), points.clone()]
        share = self.ends[len(self.seen) - 1]
        clean = asker.clean[torch.from_numpy(rows)]
        away = (points - clean) / (points - clean).norm(dim=1, keepdim=True)
        return clean + share * away


def test_the_best_scouts_of_a_round_go_on_from_where_they_are_and_the_best_of_the_last_walks() -> None:
    class Away(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            far = (x - 0.5).flatten(1).norm(dim=1) - 1e-9
            return torch.stack([-far, far], dim=1)

    clean = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    attack = Homing(max_queries=6000, scouts=4)
    #              first round            second    walk
    attack.ends = (0.4, 0.2, 0.3, 0.25, 0.12, 0.1, 0.05)
    result = attack(Away(), clean, torch.tensor([0, 0]))
    flat = [(points - 0.5).norm(dim=1) for points in attack.seen]
    assert [round(float(each[0]), 6) for each in flat[4:]] == [
        0.2,
        0.25,
        0.1,
    ]  # the second, the fourth; the fourth again
    directions = [(points - 0.5) / (points - 0.5).norm(dim=1, keepdim=True) for points in attack.seen]
    for later, earlier in ((4, 1), (5, 3), (6, 3)):
        torch.testing.assert_close(directions[later], directions[earlier])
    torch.testing.assert_close(
        result.distance, torch.full((2,), 0.05**2 / 16, dtype=result.distance.dtype), rtol=1e-3, atol=0
    )


def test_scouts_stay_at_home_where_the_budget_is_small_or_there_is_none() -> None:
    model, clean = RowNet(), images(6, dtype=torch.float64)
    truth = right(model, clean)
    for limits in ({"max_queries": 3900}, {"max_queries": None, "steps": 20}):
        one, three = (
            BoundaryAttack(**limits, scouts=scouts)(model, clean, truth)  # type: ignore[arg-type]
            for scouts in (1, 3)
        )
        assert torch.equal(one.images, three.images)
        assert torch.equal(one.queries, three.queries)


def test_a_sample_without_queries_for_a_good_part_of_another_walk_does_not_restart() -> None:
    model, clean = RowNet(), images(6, dtype=torch.float64)
    truth = right(model, clean)
    once = BoundaryAttack(max_queries=10_000, scouts=1)(model, clean, truth)
    budget = int(1.3 * once.queries.min())
    tight = BoundaryAttack(max_queries=budget, scouts=1, restarts=5)(model, clean, truth)
    assert tight.queries.min() == once.queries.min()


def test_a_push_that_would_leave_the_adversarial_side_is_not_made() -> None:
    class Ring(nn.Module):
        """Class 1 between two radii around grey, of which noise starts find the outer one only by luck."""

        def forward(self, x: Tensor) -> Tensor:
            inside = (x - 0.5).flatten(1).square().sum(1) <= 1
            outside = (x - 0.5).flatten(1).square().sum(1) > 0.25
            ring = (inside & outside).double()
            return torch.stack([1 - ring, ring], dim=1)

    clean = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    edge = clean.clone()
    edge[0, 0, :, 0] += 0.5  # at radius 1 exactly
    result = OnlyStart()(Ring(), clean, torch.tensor([0]), starting_points=edge)
    assert result.fooled.all()
    assert torch.equal(result.images, edge)


def test_blends_and_columns_are_row_by_row() -> None:
    clean, other = torch.zeros(3, 2), torch.ones(3, 2)
    found = blend(clean, other, np.array([0.0, 0.25, 1.5]))
    assert found.tolist() == [[0, 0], [0.25, 0.25], [1, 1]]
    assert column(np.array([1.0, 2.0]), clean).tolist() == [[1], [2]]
    assert column(np.array([1.0]), clean).dtype == clean.dtype


@pytest.mark.parametrize("width", [16, 3 * 32 * 32, 200_000])
def test_a_row_sums_to_the_same_bits_whatever_stands_beside_it(width: int) -> None:
    values = torch.rand(5, width, generator=torch.Generator().manual_seed(0))
    whole = row_sums(values)
    assert [row_sums(values[i : i + 1])[0] for i in range(5)] == whole.tolist()
    np.testing.assert_allclose(whole, values.double().sum(dim=1).numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_queries": 3},
        {"max_queries": None},
        {"scouts": 0},
        {"restarts": -1},
        {"start_draws": 0},
        {"start_grid": 0},
        {"start_search": "guess"},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        OnlyStart(**bad)  # type: ignore[arg-type]
