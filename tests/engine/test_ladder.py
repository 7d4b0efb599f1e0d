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
from dcn_plugin.engine.ladder import Rung, climb, rungs, ways_of
from dcn_plugin.engine.plan import Way

CPU = torch.device("cpu")
KINDS: tuple[tuple[Way, ...], ...] = (
    ("model",),
    ("images", "model"),
    ("compact", "model"),
    ("compact", "images", "model"),
    ("images", "compact", "model"),
)


def test_rungs_are_powers_of_two_and_the_largest_batch() -> None:
    assert rungs(1) == [1]
    assert rungs(2) == [1, 2]
    assert rungs(8) == [1, 2, 4, 8]
    assert rungs(40) == [1, 2, 4, 8, 16, 32, 40]


@given(st.integers(1, 70), st.data())
def test_between_two_rungs_runs_only_what_is_allowed_on_both(batch: int, data: st.DataObject) -> None:
    found = [Rung(count, data.draw(st.sampled_from(KINDS))) for count in rungs(batch)]
    ways = ways_of(found)
    assert [first for first, _ in ways] == sorted({first for first, _ in ways})
    assert all(one[1] != two[1] for one, two in pairwise(ways))
    for count in range(1, batch + 1):
        way = next(way for first, way in reversed(ways) if first <= count)
        around = {max(one.batch_size for one in found if one.batch_size <= count)}
        around.add(min(one.batch_size for one in found if one.batch_size >= count))
        assert all(way in one.allowed for one in found if one.batch_size in around)
        exact = [one for one in found if one.batch_size == count]
        assert not exact or way == exact[0].allowed[0]


class Times:
    """Compares ways by the times that a test gives: way -> milliseconds of a batch of so many images."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **times: Any) -> None:
        self.times, self.asked = times, list[tuple[str, int]]()
        monkeypatch.setattr(ladder, "raced", self.raced)
        self.ways = {name: self.way(name) for name in times}

    def way(self, name: str) -> Any:
        def run(images: Tensor) -> str:
            return name

        return run

    def raced(self, plain: Any, other: Any, images: Tensor, **_: Any) -> Compared:
        one, two = plain(images), other(images)
        self.asked.append((two, len(images)))
        before, after = self.times[one](len(images)), self.times[two](len(images))
        return Compared(before / after, before, after)

    def climb(self, batch_size: int) -> list[Rung]:
        return climb(self.ways, (1, 2, 2), batch_size, device=CPU)


def test_no_way_is_allowed_that_lost_on_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows pay from 5 images on, and images but for a single one.
    times = Times(
        monkeypatch,
        model=lambda n: 10 * n,
        images=lambda n: 9 * n if n > 1 else 11,
        compact=lambda n: 6 * (n - n % -4),
    )
    found = {rung.batch_size: rung for rung in times.climb(16)}
    for count, rung in found.items():
        for way in rung.allowed:
            assert times.times[way](count) <= 10 * count
        assert rung.allowed[-1] == "model"
        assert rung.model_ms == 10 * count
        assert rung.best_ms == pytest.approx(times.times[rung.allowed[0]](count))
    assert found[16].allowed[0] == "compact"
    assert found[1].allowed == ("model",)


def test_a_way_that_lost_twice_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch, model=lambda n: n, compact=lambda n: n / 2 if n > 8 else 2 * n)
    found = times.climb(32)
    assert [count for way, count in times.asked if way == "compact"] == [32, 16, 8, 9, 4, 2]
    assert [rung.allowed for rung in found if rung.batch_size < 9] == [("model",)] * 4
    assert [rung.batch_size for rung in found] == [1, 2, 4, 8, 9, 16, 32]


@given(st.integers(1, 40), st.floats(0.3, 1.3), st.sampled_from([1, 2, 4, 8, 16]), st.floats(0, 5))
def test_nothing_is_lost_between_the_rungs(batch: int, share: float, vector: int, fixed: float) -> None:
    # Rows are computed a vector of images at a time, so that one image more may cost as much as a vector.
    model = [0.0, *(fixed + 10.0 * n for n in range(1, batch + 1))]
    compact = [0.0, *(fixed / 2 + 10 * share * (n - n % -vector) for n in range(1, batch + 1))]
    with pytest.MonkeyPatch.context() as patch:
        found = Times(patch, model=model.__getitem__, compact=compact.__getitem__).climb(batch)
    ways = ways_of(found)
    for count in range(1, batch + 1):
        way = next(way for first, way in reversed(ways) if first <= count)
        assert {"model": model, "compact": compact}[way][count] <= model[count]


def test_a_batch_that_the_model_refuses_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    times = Times(monkeypatch, model=lambda n: n, images=lambda n: n / 2)

    def choosy(images: Tensor) -> str:
        if len(images) == 1:
            raise ValueError("Expected more than 1 value per channel")
        return "model"

    times.ways["model"] = choosy
    assert [rung.allowed[0] for rung in times.climb(4)] == ["model", "images", "images"]
