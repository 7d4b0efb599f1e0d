"""What is timed of training, what is reckoned from it, and that nothing of the model is touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx, nn

from dcn_plugin.engine.capture import simplified, traced
from dcn_plugin.engine.liveness import live_neurons
from dcn_plugin.engine.steps import Step, find_steps
from dcn_plugin.engine.training import costs
from dcn_plugin.engine.training.costs import TrainingCosts, forward_and_backward, is_masked, seconds
from dcn_plugin.support.onednn import without_narrow_strides
from tests.engine.training.training_nets import SIZE, make
from tests.nets import same, snapshot


def task_of(model: nn.Module, batch: int, **options: bool) -> tuple[list[Step], TrainingCosts]:
    """Steps and their costs on the reference backend."""
    captured = simplified(traced(model, SIZE), training=True)
    live = live_neurons(captured.graph)
    return find_steps(captured.graph, training=True), TrainingCosts(captured, live, batch, "reference", **options)


def named(steps: list[Step], name: str) -> Step:
    return next(step for step in steps if step.conv is not None and step.nodes[0].meta["title"] == name)


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Every timed call; the n-th takes n milliseconds."""
    calls: list[Callable[[], object]] = []

    def timed(call: Callable[[], object], **_: object) -> float:
        call()
        calls.append(call)
        return 1e-3 * len(calls)

    monkeypatch.setattr(costs, "seconds", timed)
    return calls


def test_a_convolution_is_timed_once_on_images_and_on_rows(timings: list[Callable[[], object]]) -> None:
    model = make()
    steps, measured = task_of(model, 8)
    before = snapshot(model)
    for name, times in (("layer1.conv2", (1.0, 2.0)), ("layer1.conv1", (3.0, 4.0))):
        step = named(steps, name)
        for _ in range(2):
            assert (measured.images(step), measured.rows(step)) == pytest.approx(times)
    assert len(timings) == 4
    assert same({**before, "rng": torch.get_rng_state()}, snapshot(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_large_batch_is_timed_with_some_of_its_images(timings: list[Callable[[], object]]) -> None:
    steps, measured = task_of(make(), 256)
    assert measured.images(named(steps, "layer1.conv2")) == pytest.approx(4.0)
    assert measured.rows(named(steps, "layer1.conv2")) == pytest.approx(8.0)


def test_other_steps_cost_their_values_and_a_mask_costs_nothing(timings: list[Callable[[], object]]) -> None:
    steps, measured = task_of(make("joined"), 4)
    kinds = {kind: [step for step in steps if step.kind == kind] for kind in ("act", "mask", "cat", "other", "pool")}
    act = kinds["act"][0]
    images, rows = measured.images(act), measured.rows(act)
    live = measured.live[act.value]
    assert rows == pytest.approx(images * float(live.float().mean())) and 0 < rows < images
    assert measured.rows(kinds["mask"][0]) == 0.0
    assert all(measured.rows(step) is None for step in (*kinds["other"], *kinds["pool"]))
    assert {measured.images(step) for step in kinds["other"]} == {0.0}
    assert measured.images(kinds["pool"][0]) > 0
    assert len(timings) == 1


def test_a_conversion_costs_its_values_and_the_images_need_no_gradient(timings: list[Callable[[], object]]) -> None:
    steps, measured = task_of(make(), 4)
    source = next(step.value for step in steps if step.value.op == "placeholder")
    inner = named(steps, "layer1.conv1").inputs[0]
    there, back = measured.conversion(inner)
    assert there == back > 0
    half, full = measured.conversion(source)
    assert half == pytest.approx(full / 2)
    assert full / back == pytest.approx(measured.live[source].numel() / measured.live[inner].numel())
    assert measured.conversion(steps[-1].nodes[0]) == (0.0, 0.0)
    assert measured.saved_by_packing(named(steps, "layer1.conv1")) == 0.0
    assert len(timings) == 1


def test_statistics_of_live_neurons_cost_too_much_on_images(timings: list[Callable[[], object]]) -> None:
    steps, measured = task_of(make(), 4, live_statistics=True)
    step = named(steps, "layer1.conv1")
    assert step.conv is not None and is_masked(step.conv)
    assert measured.images(step) > 1e9
    assert measured.rows(step) is not None


def test_both_ways_compute_the_same_gradients_as_the_step_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted: list[list[tuple[int, ...]]] = []

    def note(out: torch.Tensor, tensors: list[torch.Tensor]) -> None:
        wanted.append([tuple(out.shape), *(tuple(tensor.shape) for tensor in tensors)])
        forward_and_backward(out, tensors)

    monkeypatch.setattr(costs, "seconds", lambda call, **_: (call(), 1.0)[1])
    monkeypatch.setattr(costs, "forward_and_backward", note)
    steps, measured = task_of(make(), 4)
    step = named(steps, "layer1.shortcut.0")
    measured.images(step)
    images, rows = wanted
    live = [int(measured.live[node].sum()) for node in (*step.inputs, step.value)]
    assert images[0] == (4, 8, 8, 8) and (8, 6, 1, 1) in images and (4, 6, 16, 16) in images
    assert rows == [(live[-1], 4), *((count, 4) for count in live[:-1]), (8, 6, 1, 1)]


def test_a_narrow_convolution_with_a_stride_is_measured_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[fx.GraphModule] = []

    def note(graph: fx.GraphModule) -> None:
        without_narrow_strides(graph)
        graphs.append(graph)

    monkeypatch.setattr(costs, "seconds", lambda call, **_: 1.0)
    monkeypatch.setattr(costs, "without_narrow_strides", note)
    steps, measured = task_of(make(), 4)
    measured.images(named(steps, "layer1.shortcut.0"))
    (graph,) = graphs
    conv = next(node for node in graph.graph.nodes if node.target is torch.ops.aten.conv2d.default)
    assert conv.args[3] == [1, 1] and conv.args[0].target is torch.ops.aten.slice.Tensor


def test_nothing_is_asked_of_what_leads_to_no_gradient() -> None:
    forward_and_backward(torch.ones(2), [])
    forward_and_backward(torch.ones(2), [torch.ones(2, requires_grad=True)])


def test_the_least_of_several_calls_counts_and_the_first_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 3.0, 10.0, 12.0])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    assert seconds(lambda: calls.append(1)) == 2.0
    assert len(calls) == 3
