"""Graphs of steps that are built by hand, for tests of what steps cost and where they run."""

from __future__ import annotations

import torch
from torch import fx

from dcn_plugin.engine.steps import Conv, Kind, Step
from tests.engine.cases import Layer, make_layer

Live = dict[fx.Node, torch.Tensor]


class Net:
    """A graph of steps that is built by hand; what the steps compute does not matter."""

    def __init__(self) -> None:
        self.graph, self.steps = fx.Graph(), list[Step]()
        self.live: Live = {}

    def step(self, kind: Kind, *inputs: Step, layer: Layer | None = None) -> Step:
        """Add a step; without a layer a convolution is 1x1 on one dead and one live neuron."""
        name = f"value_{len(self.steps)}"
        node = self.graph.placeholder(name)
        conv = None
        if kind == "conv":
            layer = layer or make_layer(
                kernel=(1, 1), size=(1, 2), inputs=1, outputs=1, padding=(0, 0), densities=(1.0, 1.0, None)
            )
            conv = Conv(layer.weight, layer.bias, layer.geometry, layer.kept, layer.relu)
            self.live.setdefault(inputs[0].value, layer.in_live)
            self.live[node] = layer.out_live
        else:
            self.live[node] = torch.ones(1, 1, 2, dtype=torch.bool)
        made = Step(kind, (node,), tuple(one.value for one in inputs), conv)
        self.steps.append(made)
        return made


def one_layer(layer: Layer) -> tuple[Step, Live]:
    net = Net()
    source = net.step("other")
    del net.live[source.value]
    return net.step("conv", source, layer=layer), net.live
