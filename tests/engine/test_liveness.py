from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, fx, nn

from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.liveness import constant_of, live_neurons
from tests.engine.small_nets import NETS, SIZE, make, pictures, programs, randomised


class Watcher(fx.Interpreter):
    """Runs a graph and notes for every node which neurons were other than 0 for any image."""

    def __init__(self, captured: fx.GraphModule) -> None:
        super().__init__(captured)
        self.seen: dict[fx.Node, Tensor] = {}

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        if node.op == "call_function" and isinstance(value, Tensor) and value.ndim == 4:
            self.seen[node] = (value != 0).any(0) | self.seen.get(node, torch.tensor(False))
        return value


def seen_and_live(model: nn.Module) -> list[tuple[fx.Node, Tensor, Tensor]]:
    captured = capture(model, SIZE)
    watcher = Watcher(captured)
    with torch.no_grad():
        for scale in (0.0, 1.0, -30.0):
            watcher.run(pictures(40) * scale)
    live = live_neurons(captured.graph)
    return [(node, seen, live[node]) for node, seen in watcher.seen.items() if node in live]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_neuron_that_is_called_dead_is_ever_anything_but_zero(name: str, seed: int) -> None:
    found = seen_and_live(make(name, seed=seed))
    assert found
    for node, seen, live in found:
        assert not (seen & ~live).any(), node
    assert any(not live.all() for _, _, live in found)


@settings(max_examples=25)
@given(programs())
def test_no_neuron_that_is_called_dead_is_ever_anything_but_zero_in_any_network(net: nn.Module) -> None:
    for node, seen, live in seen_and_live(randomised(net)):
        assert not (seen & ~live).any(), node


MASK = torch.rand(4, 9, 8, generator=torch.Generator().manual_seed(0)) < 0.4
OTHER = torch.rand(4, 9, 8, generator=torch.Generator().manual_seed(1)) < 0.4
ALL = torch.ones(4, 9, 8, dtype=torch.bool)
EVEN = torch.arange(4) % 2 == 0


class Masked(nn.Module):
    """A function of two masked convolutions with negative biases."""

    def __init__(self, then: Callable[[Masked, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.again = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.prelu = nn.PReLU(4)
        self.register_buffer("mask", MASK[None])
        self.register_buffer("other", OTHER[None])
        self.register_buffer("even", EVEN.view(1, 4, 1, 1))
        self.register_buffer("factor", MASK[None] * 0.5, persistent=False)
        self.then = then
        randomised(self)
        with torch.no_grad():
            self.conv1.bias.fill_(-0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.conv1(x) * self.mask, self.conv2(x) * self.other)


def window(live: Tensor, *arguments: object) -> Tensor:
    return F.max_pool2d(live[None].float(), *arguments)[0] > 0


RULES: dict[str, tuple[Callable[[Masked, Tensor, Tensor], Tensor], Tensor]] = {
    "a mask kills": (lambda net, a, b: a, MASK),
    "two masks kill what either kills": (lambda net, a, b: a * net.other, MASK & OTHER),
    "a mask of channels kills channels": (lambda net, a, b: net.even * a, MASK & EVEN.view(4, 1, 1)),
    "a factor other than 0 and 1 kills where it is 0": (lambda net, a, b: net.again(a) * net.factor, MASK),
    "a number kills nothing": (lambda net, a, b: a * -0.5, MASK),
    "a sum is the union": (lambda net, a, b: a + b, MASK | OTHER),
    "a weighted sum is the union": (lambda net, a, b: torch.add(a, b, alpha=-2), MASK | OTHER),
    "a product is the intersection": (lambda net, a, b: a * b, MASK & OTHER),
    "a gate kills nothing more": (lambda net, a, b: a * b.mean((2, 3), keepdim=True).sigmoid(), MASK),
    "relu keeps zero": (lambda net, a, b: a.relu(), MASK),
    "silu keeps zero": (lambda net, a, b: F.silu(a), MASK),
    "gelu keeps zero": (lambda net, a, b: F.gelu(a, approximate="tanh"), MASK),
    "leaky relu keeps zero": (lambda net, a, b: F.leaky_relu(a, -0.2), MASK),
    "elu keeps zero": (lambda net, a, b: F.elu(a, 2.0), MASK),
    "mish keeps zero": (lambda net, a, b: F.mish(a), MASK),
    "hardswish keeps zero": (lambda net, a, b: F.hardswish(a), MASK),
    "relu6 keeps zero": (lambda net, a, b: F.relu6(a), MASK),
    "tanh keeps zero": (lambda net, a, b: a.tanh(), MASK),
    "hardtanh keeps zero": (lambda net, a, b: F.hardtanh(a), MASK),
    "hardtanh keeps a zero at its edge": (lambda net, a, b: F.hardtanh(a, 0.0, 2.0), MASK),
    "hardtanh above zero revives all": (lambda net, a, b: F.hardtanh(a, 0.25, 2.0), ALL),
    "hardtanh below zero revives all": (lambda net, a, b: F.hardtanh(a, -2.0, -0.25), ALL),
    "sigmoid revives all": (lambda net, a, b: a.sigmoid(), ALL),
    "adding a number revives all": (lambda net, a, b: a + 1, ALL),
    "an operation that is not known revives all": (lambda net, a, b: net.prelu(a), ALL),
    "a convolution revives all": (lambda net, a, b: net.again(a), ALL),
    "max pool is the union of its window": (lambda net, a, b: F.max_pool2d(a, 3, 2, 1), window(MASK, 3, 2, 1)),
    "max pool may be dilated": (lambda net, a, b: F.max_pool2d(a, 2, 1, 0, 2), window(MASK, 2, 1, 0, 2)),
    "max pool may be ceiled": (
        lambda net, a, b: F.max_pool2d(a, (2, 3), ceil_mode=True),
        window(MASK, (2, 3), None, 0, 1, True),
    ),
    "average pool is the union of its window": (lambda net, a, b: F.avg_pool2d(a, 2), window(MASK, 2)),
    "average pool may be padded": (
        lambda net, a, b: F.avg_pool2d(a, 3, 2, 1, True, False),
        window(MASK, 3, 2, 1, 1, True),
    ),
    "a pool to a fixed size is not known": (lambda net, a, b: F.adaptive_avg_pool2d(a, (9, 8)), ALL),
    "a concatenation stays one": (lambda net, a, b: torch.cat([a, b, a], 1), torch.cat([MASK, OTHER, MASK])),
    "a concatenation of channels counted from the end": (
        lambda net, a, b: torch.cat([b, a], -3),
        torch.cat([OTHER, MASK]),
    ),
    "a concatenation of positions is not known": (
        lambda net, a, b: torch.cat([a, b], 2),
        torch.ones(4, 18, 8, dtype=torch.bool),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_says_what_stays_alive(name: str) -> None:
    then, expected = RULES[name]
    captured = capture(Masked(then), SIZE)
    result = captured.graph.output_node().args[0]
    assert torch.equal(live_neurons(captured.graph)[result], expected)


@pytest.mark.parametrize("name", RULES)
def test_each_rule_is_sound(name: str) -> None:
    for node, seen, live in seen_and_live(Masked(RULES[name][0])):
        assert not (seen & ~live).any(), node


def test_a_dilated_window_in_the_padding_alone_is_not_zero_but_minus_infinity() -> None:
    def then(net: Masked, a: Tensor, b: Tensor) -> Tensor:
        return F.max_pool2d(a[:, :, :3, :3], 2, 1, 1, 4)

    for node, seen, live in seen_and_live(Masked(then)):
        assert not (seen & ~live).any(), node


def test_only_images_have_an_entry() -> None:
    captured = capture(make("Gated"), SIZE)
    live = live_neurons(captured.graph)
    assert all(node.meta["val"].ndim == 4 for node in live)
    assert all(one.dtype == torch.bool for one in live.values())


def test_the_value_of_an_attribute_is_known_and_that_of_a_computation_is_not() -> None:
    captured = capture(make("PostActivation"), SIZE)
    for node in captured.graph.nodes:
        value = constant_of(node)
        assert (value is not None) == (node.op == "get_attr")
        assert value is None or torch.equal(value, getattr(captured, node.target))
