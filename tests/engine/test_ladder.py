"""Which way batches of each size run."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcn_plugin.engine import ladder
from dcn_plugin.engine.clock import Compared
from dcn_plugin.engine.ladder import RESERVE, Ladder, Rung, climb, rungs
from dcn_plugin.engine.plan import Plan, Way

CPU = torch.device("cpu")


def plan_of(found: Ladder) -> Plan:
    """A plan whose batches run as a ladder says."""
    return Plan(
        layers=(),
        backend="c",
        batch_size=found.largest.batch_size,
        dense_ms=None,
        compact_ms=None,
        least_batch=1,
        ways=found.ways,
        chunks=found.chunks,
    )


def test_raced_in_any_case_are_every_second_power_of_two_and_the_largest_batch() -> None:
    assert rungs(1) == [1]
    assert rungs(2) == [1, 2]
    assert rungs(3) == [1, 3]
    assert rungs(8) == [1, 4, 8]
    assert rungs(32) == [1, 4, 16, 32]
    assert rungs(40) == [1, 4, 16, 40]
    assert rungs(64) == [1, 4, 16, 64]


class Times:
    """Compares ways by the times that a test gives: way -> milliseconds of a batch of so many images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **times: Any) -> None:
        self.times, self.asked = times, list[tuple[str, str, int]]()
        monkeypatch.setattr(ladder, "raced", self.raced)
        self.ways: dict[Any, Any] = {name: self.way(name) for name in times}

    def way(self, name: str) -> Any:
        def run(images: Tensor) -> str:
            return name

        return run

    def raced(self, plain: Any, other: Any, images: Tensor, **_: Any) -> Compared:
        first, second = plain(images), other(images)
        self.asked.append((first, second, len(images)))
        before, after = self.times[first](len(images)), self.times[second](len(images))
        return Compared(before / after, before, after)

    def climb(self, batch_size: int, *, by_vector: bool = True, cut: bool = True) -> Ladder:
        return climb(self.ways, (1, 2, 2), batch_size, by_vector=by_vector, cut=cut, device=CPU)

    def took(self, plan: Plan, count: int) -> float:
        """Milliseconds of a batch as it runs."""
        return sum(float(self.times[way](size)) for size, way in plan.parts(count))

    @property
    def sizes(self) -> list[int]:
        return sorted({count for *_, count in self.asked})


def by_vector(vector: int, count: int) -> int:
    """Images that rows compute for so many: vectors of as many lanes as the batch fills, at most ``vector``."""
    lanes = min(vector, 2 ** (count.bit_length() - 1))
    return -(-count // lanes) * lanes


vectors = st.sampled_from([1, 4, 8, 16, 64])


@given(
    st.integers(1, 70),
    st.floats(0.2, 1.3),
    st.floats(0.5, 1.2),
    vectors,
    st.floats(0, 9),
    st.floats(0, 9),
    st.booleans(),
)
def test_nothing_is_lost_at_any_batch_size(
    batch: int, rows: float, share: float, vector: int, fixed: float, fixed_rows: float, cut: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        times = Times(
            patch,
            model=lambda n: fixed + n,
            images=lambda n: share * (fixed + n),
            compact=lambda n: fixed_rows + rows * by_vector(vector, n),
        )
        plan = plan_of(times.climb(batch, cut=cut))
    for count in range(1, batch + 1):
        assert times.took(plan, count) <= times.times["model"](count) * (1 + 1e-9), (plan.ways, plan.chunks)
    assert all(first[1] != second[1] for first, second in pairwise(plan.ways))


times_of_way = st.floats(0.1, 10)


@given(st.integers(1, 70), st.booleans(), st.booleans(), st.booleans(), st.data())
def test_no_batch_size_is_claimed_at_which_the_ladder_itself_predicts_a_loss(
    batch: int, vectors_count: bool, cut: bool, busy: bool, data: st.DataObject
) -> None:
    # Whatever was measured, even what no machine does: growing, falling, at random.
    found = []
    for number, count in enumerate(rungs(batch)):
        ms: dict[Way, float] = {way: data.draw(times_of_way) for way in ("model", "images", "compact")}
        faster = [way for way in sorted(ms, key=ms.__getitem__) if ms[way] < ms["model"]]
        found.append(Rung(count, (*faster, "model"), ms, busy and number == 0))
    whole = Ladder(found, vectors_count, cut)
    plan = plan_of(whole)
    for count in range(1, batch + 1):
        model_ms = whole.ms("model", count)
        parts = plan.parts(count)
        if len(parts) == 1:
            assert whole.ms(parts[0][1], count) <= model_ms * (1 + 1e-9)
        elif count not in rungs(batch) and vectors_count:
            chunks = sum(whole.ms(way, size) for size, way in parts if size in plan.chunks)
            rest = sum(whole.ms(way, size) for size, way in parts if size not in plan.chunks)
            assert chunks + rest <= model_ms / RESERVE * (1 + 1e-9)
            assert not busy or batch == 1


def test_no_way_is_allowed_that_lost_on_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(
        monkeypatch,
        model=lambda n: 10 * n,
        images=lambda n: 9 * n if n > 1 else 11,
        compact=lambda n: 6 * (n - n % -4),
    )
    found = times.climb(16)
    for rung in found.rungs:
        for way in rung.allowed:
            assert times.times[way](rung.batch_size) <= 10 * rung.batch_size
        assert rung.allowed[-1] == "model"
        assert rung.ms["model"] == 10 * rung.batch_size
    assert found.largest.allowed[0] == "compact"
    assert found.rungs[0].allowed == ("model",)


def test_between_two_sizes_with_the_same_clear_winner_nothing_is_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch, model=lambda n: 3 + n, compact=lambda n: 0.3 * by_vector(16, n))
    found = times.climb(64)
    assert times.sizes == [1, 4, 16, 64]
    assert found.chunks == (64, 32, 16, 8, 4, 2, 1)
    assert found.ways == ((1, "compact"),)


@pytest.mark.parametrize("share", [0.95, 1.05])
def test_what_is_close_is_raced_at_every_power_of_two(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch, model=lambda n: n, images=lambda n: share * n)
    ways = times.climb(32).ways
    if share < 1:
        assert times.sizes == [1, 2, 4, 8, 16, 32]
        assert ways == ((1, "images"),)
    else:  # the model wins everywhere: nothing can be lost
        assert times.sizes == [1, 4, 16, 32]
        assert ways == ((1, "model"),)


def test_where_the_winner_changes_the_size_between_is_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch, model=lambda n: n, images=lambda n: 0.8 * n, compact=lambda n: 2 + 0.4 * n)
    found = times.climb(64)
    assert [rung.batch_size for rung in found.rungs] == [1, 4, 8, 16, 64]
    assert [rung.allowed[0] for rung in found.rungs] == ["images", "images", "compact", "compact", "compact"]
    assert found.ways[0] == (1, "images") and found.ways[-1][1] == "compact"


def test_images_are_not_raced_with_the_largest_batch_where_rows_are_clearly_faster_than_what_follows_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = Times(monkeypatch, model=lambda n: 1.3 * n, images=lambda n: n, compact=lambda n: 4 + 0.1 * n)
    found = times.climb(64)
    assert [count for _, other, count in times.asked if other == "images"] == [1, 4, 16, 8]
    assert found.largest.allowed == ("compact", "images", "model")  # allowed, for that follows
    assert "images" not in found.largest.ms


def test_a_batch_is_cut_into_pieces_that_were_raced_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(
        monkeypatch,
        model=lambda n: 4 + n,
        images=lambda n: 0.8 * (4 + n),
        compact=lambda n: 0.2 * by_vector(16, n) + (20 if n < 16 else 0),
    )
    found = times.climb(64)
    plan = plan_of(found)
    assert found.chunks == (64, 32, 16)
    assert plan.parts(16) == [(16, "compact")]
    assert plan.parts(63) == [(32, "compact"), (16, "compact"), (15, "images")]
    assert plan.parts(150) == [(64, "compact"), (64, "compact"), (16, "compact"), (6, "images")]
    assert plan.parts(0) == [(0, "images")]


def test_a_batch_that_must_not_be_cut_runs_on_rows_only_at_sizes_that_were_raced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = Times(monkeypatch, model=lambda n: n, compact=lambda n: 0.3 * by_vector(16, n))
    found = times.climb(16, cut=False)
    assert found.chunks == ()
    raced = [rung.batch_size for rung in found.rungs]
    assert [count for count in range(1, 17) if plan_of(found).way(count) == "compact"] == raced


def test_without_vectors_a_way_that_is_allowed_around_a_size_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch, model=lambda n: n, compact=lambda n: 0.5 * n if n > 3 else 2 * n)
    found = times.climb(16, by_vector=False)
    assert found.chunks == ()
    assert found.ways == ((1, "model"), (4, "compact"))
    assert plan_of(found).parts(13) == [(13, "compact")]


@pytest.mark.parametrize("rows", [True, False])
def test_a_batch_is_cut_into_what_is_clearly_fastest_an_image(rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for large, most in ((0.5, 16), (0.31, 64)):
        times = Times(monkeypatch, model=lambda n: n, compact=lambda n, large=large: (0.3 if n <= 16 else large) * n)
        found = times.climb(64, by_vector=rows)
        assert max(found.chunks, default=64) == most
        assert found.compact_ms == pytest.approx(0.3 * 64 if most == 16 else large * 64)


def test_a_batch_that_the_model_refuses_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch, model=lambda n: n, images=lambda n: n / 2)

    def choosy(images: Tensor) -> str:
        if len(images) == 1:
            raise ValueError("Expected more than 1 value per channel")
        return "model"

    times.ways["model"] = choosy
    found = times.climb(4, by_vector=False, cut=False)
    assert [rung.allowed[0] for rung in found.rungs] == ["model", "images", "images"]


def test_an_error_of_a_way_whose_model_runs_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch, model=lambda n: n, images=lambda n: n / 2)

    def broken(images: Tensor) -> str:
        raise RuntimeError("out of order")

    times.ways["images"] = broken
    with pytest.raises(RuntimeError, match="out of order"):
        times.climb(4)
