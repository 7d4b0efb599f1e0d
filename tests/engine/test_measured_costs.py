"""Measured costs: what is timed, what is reckoned from the bandwidth, and that nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dcn_plugin.engine import measured_costs
from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.constant_cache import derived
from dcn_plugin.engine.liveness import live_neurons
from dcn_plugin.engine.measured_costs import BELIEVED, WORTH, Measured, _density
from dcn_plugin.engine.packed_conv import can_pack
from dcn_plugin.engine.partition import multiply_adds
from dcn_plugin.engine.steps import find_steps
from tests.engine.cases import make_layer, needs_c
from tests.engine.compacted import SIZE, small
from tests.engine.step_graphs import Net, one_layer

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(not can_pack(CPU, torch.float32), reason="this build of PyTorch cannot pack")


@needs_c
def test_everything_is_measured_once_and_leaves_no_lists_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before, calls = set(derived._entries), []

    def watch(run: Callable[[], object], device: torch.device, **_: object) -> float:
        run()
        calls.append(run)
        return float(len(calls))

    monkeypatch.setattr(measured_costs, "timed", watch)
    monkeypatch.setattr(measured_costs, "can_pack", lambda *_: False)
    step, live = one_layer(make_layer(densities=(0.3, 0.3, None)))
    costs = Measured(live, 16, CPU, "c")
    for _ in range(2):
        assert (costs.images(step), costs.rows(step)) == (2.0, 1.0)
    for _ in range(2):
        assert costs.conversion(step.value) == (3.0, 4.0)
    assert len(calls) == 4
    assert costs.times == {step: (2.0, 1.0)}
    assert set(derived._entries) == before
    # Another network on the same machine, with a layer of the same kind.
    other, other_live = one_layer(make_layer(densities=(0.3, 0.3, None), seed=0))
    known = Measured(other_live, 16, CPU, "c", kinds=costs.kinds)
    assert (known.images(other), known.rows(other)) == (2.0, 1.0)
    assert len(calls) == 4
    # A number of another form is no time of it.
    damaged = Measured(other_live, 16, CPU, "c", kinds={kind: [1.0] * 3 for kind in costs.kinds})
    assert damaged.times == {} and damaged.images(other) == 6.0


@needs_c
def test_what_is_no_image_costs_nothing_to_convert_and_what_rows_cannot_do_has_no_cost_there() -> None:
    net = Net()
    end = net.step("other")
    costs = Measured({}, 16, CPU, "c")
    assert costs.conversion(end.value) == (0.0, 0.0)
    assert costs.rows(end) is None
    assert costs.images(end) == 0.0


@pytest.mark.parametrize(("claimed", "believed"), [(1e-6, 1.0), (0.9, 1.0), (3.0, 3.0)])
def test_rows_are_not_believed_to_be_far_faster_than_their_multiply_adds_say(
    claimed: float, believed: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, live = one_layer(make_layer(densities=(0.5, 0.5, None)))
    dense, left = multiply_adds(step, live)
    plain = BELIEVED * dense / left
    costs = Measured(live, 16, CPU, "c", times={step: (plain, claimed)})
    assert costs.rows(step) == pytest.approx(believed)
    assert costs.times[step] == (plain, claimed)  # the plan tells what was measured


@needs_packing
def test_what_packing_saves_is_measured_once_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, lists: Callable[[], int]
) -> None:
    calls = []

    def watch(run: Callable[[], object], device: torch.device, **_: object) -> float:
        run()
        calls.append(run)
        return 1.0 if lists() else 8.0  # packed weights are there while they are timed

    monkeypatch.setattr(measured_costs, "timed", watch)
    monkeypatch.setattr(Measured, "_on_rows", lambda *_: 5.0)
    captured = capture(small(), SIZE)
    live, steps = live_neurons(captured.graph), find_steps(captured.graph)
    step = next(step for step in steps if step.conv is not None)
    costs = Measured(live, 2, CPU, "c")
    with torch.no_grad():
        assert [costs.saved_by_packing(step) for _ in range(2)] == [7.0, 7.0]
        assert costs.images(step) == 1.0
    assert len(calls) == 2
    assert lists() == 0


@needs_packing
@pytest.mark.parametrize(
    ("share", "saved"), [(0.5, 5.0), (WORTH - 0.01, 10 * (1.01 - WORTH)), (WORTH, 0.0), (1.2, 0.0)]
)
def test_packing_that_saves_too_little_to_be_sure_of_saves_nothing(share: float, saved: float) -> None:
    step, live = one_layer(make_layer())
    costs = Measured(live, 16, CPU, "c", times={step: (10.0, 9.0)}, packed={step: 10 * share})
    assert costs.saved_by_packing(step) == pytest.approx(saved)
    assert costs.images(step) == pytest.approx(10 - saved)


def test_where_rows_are_clearly_faster_it_is_not_asked_how_long_images_take_at_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float | None] = []

    def watch(run: Callable[[], object], device: torch.device, *, enough: float | None = None) -> float:
        run()
        asked.append(enough)
        return 5.0 if enough is None else 6.0

    monkeypatch.setattr(measured_costs, "timed", watch)
    step, live = one_layer(make_layer(batch=64))
    costs = Measured(live, 64, CPU, "c")
    # Of 64 images 16 are measured: 6 ms become 24, and more than twice the time of rows is enough.
    assert costs.images(step) == 24.0
    assert asked == [None, 2 * 5.0 / 4]
    assert costs.saved_by_packing(step) == 0.0
    assert len(asked) == 2


def test_steps_that_only_move_memory_cost_what_the_bandwidth_says(monkeypatch: pytest.MonkeyPatch) -> None:
    timings: list[object] = []

    def timed(run: Callable[[], object], device: torch.device) -> float:
        timings.append(run)
        return 4.0

    monkeypatch.setattr(measured_costs, "timed", timed)
    net = Net()
    first = net.step("other")
    act, total, mask = net.step("act", first), net.step("sum", first, first), net.step("mask", first)
    for step in (act, total, mask):
        net.live[step.value] = torch.tensor([[[True, False, True, False]]])
    costs, batch = Measured(net.live, 16, CPU, "reference"), 16
    bytes_a_ms = 2 * 4 * 2**22 / 4.0  # the probe reads and writes 2**22 floats
    read_and_written = 2 * 4 * 4 * batch / bytes_a_ms  # four neurons, of which two live
    assert costs.images(act) == costs.images(mask) == pytest.approx(read_and_written)
    assert costs.rows(act) == pytest.approx(read_and_written / 2)
    assert costs.rows(total) == pytest.approx(read_and_written)  # through the kernel of convolutions: twice the passes
    assert costs.rows(mask) == 0.0
    assert len(timings) == 1


def test_values_of_one_kind_are_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(measured_costs, "timed", lambda run, device: (run(), next(answers))[1])
    net = Net()
    a, b, c = (net.step("other").value for _ in range(3))
    net.live |= {
        a: torch.tensor([[[True, False]]]),
        b: torch.tensor([[[False, True]]]),  # as many neurons in another place: the same work
        c: torch.ones(1, 1, 2, dtype=torch.bool),
    }
    costs = Measured(net.live, 3, CPU, "reference")
    assert [costs.conversion(node) for node in (a, b, c, a)] == [(1.0, 2.0), (1.0, 2.0), (3.0, 4.0), (1.0, 2.0)]


def test_a_pool_is_timed_on_rows_and_on_images_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, lists: Callable[[], int]
) -> None:
    shapes: list[tuple[int, ...]] = []

    def timed(run: Callable[[], torch.Tensor], device: torch.device) -> float:
        shapes.append(tuple(run().shape))
        return float(len(shapes))

    monkeypatch.setattr(measured_costs, "timed", timed)
    graph = capture(small(), SIZE).graph
    live = live_neurons(graph)
    (pool,) = (step for step in find_steps(graph) if step.kind == "pool")
    costs = Measured(live, 2, CPU, "reference")
    for _ in range(2):
        assert (costs.rows(pool), costs.images(pool)) == (1.0, 2.0)
    assert shapes == [(int(live[pool.value].sum()), 2), (2, *live[pool.value].shape)]
    assert lists() == 0


def test_masks_of_one_share_are_of_other_kinds_where_their_positions_differ() -> None:
    neurons = torch.arange(16 * 8 * 8).view(16, 8, 8)
    draws = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    single, other = (draw < draw.flatten().median() + 1e-9 for draw in draws)
    channels = (neurons // 64) % 2 == 0
    shared = (neurons % 64) % 2 == 0
    assert _density(single) == _density(other) == (0.5, 3)
    assert _density(channels) == (0.5, 1)
    assert _density(shared) == (0.5, 2)
