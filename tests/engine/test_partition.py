"""The choice of what runs on rows: counts against loops, the minimum cut against every assignment there is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from dcn_plugin.engine.partition import Counted, choose, multiply_adds
from dcn_plugin.engine.row_layout import Geometry
from dcn_plugin.engine.steps import Kind, Step
from tests.engine.cases import Layer, make_layer
from tests.engine.step_graphs import Live, Net, one_layer

# --- counting


@pytest.mark.parametrize(
    "layer",
    [
        make_layer(),
        make_layer(stride=(2, 1), dilation=(2, 1), padding=(2, 0), kernel=(3, 2), size=(7, 6)),
        make_layer(groups=3, inputs=2, outputs=2),
        make_layer(densities=(1.0, 1.0, None)),
        make_layer(densities=(0.5, 0.0, None)),
    ],
    ids=["plain", "stride, dilation", "groups", "all live", "nothing kept"],
)
def test_multiply_adds_are_those_with_a_live_input_and_a_kept_output(layer: Layer) -> None:
    (outputs, inputs, high, wide), geometry = layer.weight.shape, layer.geometry
    count = 0
    for channel, top, left in layer.kept.nonzero().tolist():
        first = channel // (outputs // geometry.groups) * inputs
        for one, y, x in itertools.product(range(inputs), range(high), range(wide)):
            row = top * geometry.stride[0] - geometry.padding[0] + y * geometry.dilation[0]
            column = left * geometry.stride[1] - geometry.padding[1] + x * geometry.dilation[1]
            inside = 0 <= row < layer.in_live.shape[1] and 0 <= column < layer.in_live.shape[2]
            count += inside and bool(layer.in_live[first + one, row, column])
    assert multiply_adds(*one_layer(layer))[1] == count


def test_the_dense_multiply_adds_are_at_least_the_live_ones_and_equal_where_all_lives() -> None:
    dense, live = multiply_adds(*one_layer(make_layer(densities=(1.0, 1.0, None), padding=(0, 0))))
    assert dense == live == 5 * 3 * 4 * 3 * 9  # outputs x height x width x inputs x kernel
    dense, live = multiply_adds(*one_layer(make_layer(padding=(0, 0))))
    assert live < dense == 5 * 3 * 4 * 3 * 9


def test_a_named_backend_takes_what_has_something_to_skip_and_no_more() -> None:
    whole = make_layer(densities=(1.0, 1.0, None), padding=(0, 0))
    step, live = one_layer(whole)
    assert Counted(live).rows(step) is None
    step, live = one_layer(make_layer(padding=(0, 0)))
    assert Counted(live).rows(step) == multiply_adds(step, live)[1] < Counted(live).images(step)
    assert Counted(live).rows(Step("other", step.nodes, step.inputs)) is None


# --- choosing


@dataclass(frozen=True, eq=False)
class Fake:
    """Costs from tables."""

    on_images: dict[Step, float]
    on_rows: dict[Step, float | None]
    changes: dict[fx.Node, tuple[float, float]]
    packing: dict[Step, float] = field(default_factory=dict)

    def images(self, step: Step) -> float:
        return self.on_images[step]

    def rows(self, step: Step) -> float | None:
        return self.on_rows[step]

    def conversion(self, node: fx.Node) -> tuple[float, float]:
        return self.changes[node]

    def saved_by_packing(self, step: Step) -> float:
        return self.packing.get(step, 0.0)

    def total(self, steps: list[Step], chosen: frozenset[Step]) -> float:
        """What an assignment costs, conversions included."""
        made_by = {step.value: step for step in steps}
        spent = 0.0
        for step in steps:
            own = self.on_rows[step] if step in chosen else self.on_images[step]
            assert own is not None
            spent += own
            for value in step.inputs:
                there, back = self.changes[value]
                before, here = made_by[value] in chosen, step in chosen
                spent += there if here and not before else back if before and not here else 0
        return spent


@st.composite
def nets(draw: st.DrawFn) -> tuple[list[Step], Live, Fake]:
    """A network whose values have one reader each, with costs; the first and the last step run on images only."""
    net, small = Net(), st.integers(0, 12)
    unread = [net.step("other") for _ in range(draw(st.integers(1, 2)))]
    for _ in range(draw(st.integers(1, 7))):
        kind: Kind = draw(st.sampled_from(["conv", "conv", "act", "sum", "other"]))
        many = min(2, len(unread)) if kind == "sum" else 1
        inputs = [unread.pop(draw(st.integers(0, len(unread) - 1))) for _ in range(many)]
        unread.append(net.step(kind, *inputs))
        if not draw(st.integers(0, 4)):
            unread.append(net.step("other"))
    net.step("other", *unread)
    images = {step: float(draw(small)) for step in net.steps}
    # Only convolutions gain on rows by themselves.
    rows = {
        step: None if step.kind == "other" else float(draw(small)) + (step.kind != "conv") * images[step]
        for step in net.steps
    }
    changes = {step.value: (float(draw(small)), float(draw(small))) for step in net.steps}
    return net.steps, net.live, Fake(images, rows, changes)


@given(nets())
def test_the_choice_costs_as_little_as_the_best_of_all_assignments(case: tuple[list[Step], Live, Fake]) -> None:
    steps, live, costs = case
    found = choose(steps, live, costs, budget=2**30).on_rows
    free = [step for step in steps if costs.on_rows[step] is not None]
    assert found <= set(free)
    every = (frozenset(some) for count in range(len(free) + 1) for some in itertools.combinations(free, count))
    assert costs.total(steps, found) == min(costs.total(steps, one) for one in every)


def chain(gains: list[tuple[float, float]], *, change: float) -> tuple[Net, list[Step], Fake]:
    """Convolutions one after the other, each with its cost on images and on rows."""
    net = Net()
    last = first = net.step("other")
    convs = []
    for _ in gains:
        last = net.step("conv", last)
        convs.append(last)
    end = net.step("other", last)
    images = {first: 0.0, end: 0.0, **{step: gain[0] for step, gain in zip(convs, gains, strict=True)}}
    rows: dict[Step, float | None] = {
        first: None,
        end: None,
        **{step: gain[1] for step, gain in zip(convs, gains, strict=True)},
    }
    changes = {step.value: (change, change) for step in net.steps}
    return net, convs, Fake(images, rows, changes)


def test_a_slower_layer_between_faster_ones_goes_along_where_conversions_cost_more() -> None:
    for change, expected in ((3.0, [0, 1, 2]), (0.5, [0, 2])):
        net, convs, costs = chain([(9.0, 1.0), (1.0, 3.0), (9.0, 1.0)], change=change)
        found = choose(net.steps, net.live, costs, budget=2**30)
        assert found.on_rows == {convs[at] for at in expected}
    assert "images are faster" in found.reasons[convs[1]]


def test_a_gain_that_conversions_eat_is_not_taken() -> None:
    net, convs, costs = chain([(5.0, 1.0)], change=2.5)
    found = choose(net.steps, net.live, costs, budget=2**30)
    assert not found.on_rows
    assert "conversions" in found.reasons[convs[0]]


def test_the_budget_goes_to_the_layers_that_save_most_a_byte() -> None:
    net, convs, costs = chain([(5.0, 1.0), (9.0, 1.0), (7.0, 1.0)], change=0.0)
    sizes = choose(net.steps, net.live, costs, budget=2**30).sizes
    assert set(sizes) == set(convs)
    assert len(set(sizes.values())) == 1
    each = sizes[convs[0]]
    for budget, expected in ((3 * each, [0, 1, 2]), (3 * each - 1, [1, 2]), (each, [1]), (each - 1, [])):
        found = choose(net.steps, net.live, costs, budget=budget)
        assert found.on_rows == {convs[at] for at in expected}
        left = set(convs) - found.on_rows
        assert all("max_packed_bytes" in found.reasons[step] for step in left)


def test_a_layer_that_cannot_run_on_rows_says_that_there_is_nothing_to_skip() -> None:
    net, convs, costs = chain([(5.0, 1.0)], change=0.0)
    costs.on_rows[convs[0]] = None
    found = choose(net.steps, net.live, costs, budget=2**30)
    assert not found.on_rows
    assert found.reasons == {convs[0]: "nothing to skip"}
    assert not found.sizes


def test_steps_without_a_convolution_do_not_go_to_rows() -> None:
    net = Net()
    first = net.step("other")
    act = net.step("act", first)
    end = net.step("other", act)
    costs = Fake(
        {first: 0.0, act: 9.0, end: 0.0}, {first: None, act: 0.0, end: None}, {s.value: (1, 1) for s in net.steps}
    )
    assert not choose(net.steps, net.live, costs, budget=2**30).on_rows


# --- measuring


def test_a_depthwise_layer_is_counted_group_by_group() -> None:
    layer = make_layer(groups=4, inputs=1, outputs=1, kernel=(1, 1), padding=(0, 0), densities=(0.5, 0.5, None))
    assert layer.geometry == Geometry(padding=(0, 0), groups=4)
    assert multiply_adds(*one_layer(layer))[1] == int((layer.in_live & layer.kept).sum())
