from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from dcn_plugin.engine.capture import capture, shape_of
from dcn_plugin.engine.row_layout import Geometry
from dcn_plugin.engine.steps import Step, find_steps
from tests.engine.small_nets import NETS, SIZE, Mask, make, programs, randomised


def steps_of(model: nn.Module) -> list[Step]:
    return find_steps(capture(model, SIZE).graph)


def summary(model: nn.Module) -> list[str]:
    """The kind of each step and, of a convolution, what it took along."""
    lines = []
    for step in steps_of(model):
        if step.value.op != "call_function":
            continue
        line: str = step.kind
        if step.conv is not None:
            extras = (step.conv.kept.all().logical_not(), len(step.inputs) == 2, step.conv.relu)
            line += "".join(f"+{name}" for name, has in zip(("mask", "residual", "relu"), extras, strict=True) if has)
        lines.append(line)
    return lines


EXPECTED = {
    # conv3 runs last and takes the sum.
    "PostActivation": ["conv+mask+relu", "conv+mask", "conv+mask+residual+relu"],
    # The first and the last batch norm follow no convolution that is read once: they are convolutions of their own.
    "PreActivation": ["conv", "conv+mask+relu", "conv+mask+relu", "conv+residual", "conv+mask+relu"],
    "DenseConcat": ["conv+mask+relu", "conv+mask+relu", "conv", "cat", "conv+mask+relu", "conv", "cat", "conv"],
    "MaxPooled": ["conv+mask+relu", "pool", "conv+mask+relu", "other"],
    "Gated": ["conv+mask", "act", "other", "conv+relu", "conv", "other", "other", "conv+mask+relu"],
    "Depthwise": ["conv+mask", "act", "conv+mask", "act", "conv+mask", "act"],
    # A ReLU before the sum ends conv4; conv3, which is earlier, takes it.
    "TwoConvsAdded": ["conv+mask", "conv+mask+residual+relu", "conv+mask+relu", "conv+mask+residual"],
    "ReadTwice": ["conv", "mask", "act", "other", "conv+residual"],
    "MaskedLast": ["conv+mask+relu", "mask", "act", "mask", "other"],
    "ClippedAwayFromZero": ["conv+mask", "other", "conv"],
}


@pytest.mark.parametrize("name", NETS)
def test_operations_are_grouped_into_the_steps_that_rows_can_run(name: str) -> None:
    assert summary(make(name)) == EXPECTED[name]


def assert_well_formed(model: nn.Module) -> None:
    graph = capture(model, SIZE).graph
    steps = find_steps(graph)
    covered = [node for step in steps for node in step.nodes]
    assert len(covered) == len(set(covered))
    assert set(covered) == {node for node in graph.nodes if node.op != "get_attr"}
    made = set()
    for step in steps:
        assert step.inputs == tuple(one for one in step.inputs if one in made or one.op == "placeholder")
        for inner in step.nodes[:-1]:
            assert all(reader in step.nodes for reader in inner.users)
        if step.kind != "other":
            assert all(len(shape_of(node) or ()) == 3 for node in (step.value, *step.inputs))
        made.add(step.value)


@pytest.mark.parametrize("name", NETS)
def test_steps_cover_every_operation_once_and_read_only_what_was_made_before(name: str) -> None:
    assert_well_formed(make(name))


@settings(max_examples=15)
@given(programs())
def test_steps_of_any_network_cover_every_operation_once_in_an_order_that_runs(net: nn.Module) -> None:
    assert_well_formed(randomised(net))


class Net(nn.Module):
    """A function of two convolutions."""

    def __init__(self, then: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, 2, padding=(1, 2), dilation=(1, 2), bias=False), nn.Conv2d(3, 4, 1)
        self.small, self.mask, self.other = nn.Conv2d(4, 4, 1), Mask(4, seed=0), Mask(4, seed=1)
        self.register_buffer("factor", torch.full((1, 4, 9, 8), 0.5), persistent=False)
        self.then = then
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, x)


def test_a_convolution_is_described_completely() -> None:
    model = Net(lambda net, x: net.one(x))
    (step,) = (step for step in steps_of(model) if step.kind == "conv")
    assert step.conv is not None
    assert step.conv.geometry == Geometry((2, 2), (1, 2), (1, 2), 1)
    assert torch.equal(step.conv.weight, model.one.weight)
    assert torch.equal(step.conv.bias, torch.zeros(4))
    assert step.conv.kept.all() and step.conv.kept.shape == (4, 5, 4) and not step.conv.relu


def test_masks_one_behind_the_other_are_one_mask() -> None:
    model = Net(lambda net, x: net.other(net.mask(net.two(x))))
    (step,) = (step for step in steps_of(model) if step.kind == "conv")
    assert step.conv is not None
    assert torch.equal(step.conv.kept, model.mask.kept[0] & model.other.kept[0])


CHAINS: dict[str, tuple[Callable[[Net, Tensor], Tensor], list[str]]] = {
    "a mask behind a sum is a step of its own": (
        lambda net, x: net.mask(net.two(x) + net.mask(net.two(x))),
        ["conv", "conv+mask+residual", "mask"],
    ),
    "a mask behind a ReLU is a step of its own": (lambda net, x: net.mask(net.two(x).relu()), ["conv+relu", "mask"]),
    "a second ReLU is a step of its own": (lambda net, x: net.two(x).relu().relu(), ["conv+relu", "act"]),
    "a third summand is a step of its own": (
        lambda net, x: net.two(x).tanh() + (net.two(x).tanh() + net.two(x)),
        ["conv", "act", "conv", "act", "conv+residual", "sum"],
    ),
    "a sum behind a ReLU is a step of its own": (
        lambda net, x: net.two(x).relu() + net.two(x).relu(),
        ["conv+relu", "conv+relu", "sum"],
    ),
    "a weighted sum runs on images": (
        lambda net, x: torch.add(net.two(x), net.two(x), alpha=2),
        ["conv", "conv", "other"],
    ),
    "a sum with a vector runs on images": (
        lambda net, x: net.two(x) + x.mean((1, 2, 3), keepdim=True),
        ["conv", "other", "other"],
    ),
    "a factor that is no mask runs on images": (lambda net, x: net.two(x) * net.factor, ["conv", "other"]),
    "a mask that repeats a smaller value runs on images": (
        lambda net, x: net.small(net.two(x).mean((2, 3), keepdim=True)) * net.mask.kept,
        ["conv", "other", "conv", "other"],
    ),
    "a concatenation of positions runs on images": (
        lambda net, x: torch.cat([net.two(x), net.two(x)], 2),
        ["conv", "conv", "other"],
    ),
    "a clip away from zero runs on images": (lambda net, x: F.hardtanh(net.two(x), -2, -1), ["conv", "other"]),
    "a convolution with computed weights runs on images": (
        lambda net, x: F.conv2d(net.two(x), net.two.weight.mean() * x.mean() * net.small.weight),
        ["conv", "other", "other", "other", "other"],
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_end_where_the_kernel_cannot_follow(name: str) -> None:
    then, expected = CHAINS[name]
    found = summary(Net(then))
    if "computed weights" in name:
        assert found[0] == "conv" and set(found[1:]) == {"other"}
    else:
        assert found == expected


def test_a_concatenation_reads_its_parts_in_order_even_one_part_twice() -> None:
    model = Net(lambda net, x: torch.cat([net.two(x), x, net.mask(net.two(x)), x], 1))
    step = steps_of(model)[-2]
    assert step.kind == "cat"
    assert list(step.inputs) == list(step.value.args[0])
