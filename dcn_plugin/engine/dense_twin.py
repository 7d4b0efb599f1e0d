"""The dense twin of a defective model: what a compact model is timed against, and the ideal that follows from it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.liveness import live_neurons
from dcn_plugin.engine.lower import lower
from dcn_plugin.engine.partition import multiply_adds
from dcn_plugin.engine.plan import Plan
from dcn_plugin.engine.steps import find_steps
from dcn_plugin.surgery import defect_spec, undefectify

__all__ = ["DenseTwin", "dense_twin", "ideal_speedup"]

_aten = torch.ops.aten
_CONV = _aten.conv2d.default
_BEHIND = (_aten.relu.default, _aten.relu_.default, _aten.add.Tensor, _aten.add_.Tensor)
"""What acts on the neurons that the convolution before it made, and is skipped with them."""


@dataclass(frozen=True, eq=False)
class DenseTwin:
    """A model without its masks, as fast as PyTorch's own operators run it.

    Args:
        module: (N, C, H, W) -> what the model returns; batch norm folded, weights in channels_last.
        work: name of each convolution -> its multiply-adds for one image, those of the zero padding left out.
    """

    module: fx.GraphModule
    work: dict[str, int]


def dense_twin(model: nn.Module) -> DenseTwin:
    """The same network and weights without masks, batch norm folded into the convolutions, channels_last.

    It is differentiable with respect to its input. Its graph is the one that a compact model runs where rows do not
    pay, but for the masks.

    Args:
        model: defective, in evaluation mode; not changed.

    Raises:
        NotDefectiveError: the model has no masks.
        TraceError: torch.export cannot follow the model.
    """
    size = defect_spec(model).input_size
    device = next(model.parameters()).device
    # Autograd refuses tensors that were made under inference mode, where the caller may be.
    with torch.inference_mode(False), torch.no_grad():
        captured = capture(undefectify(model), size)
        live, steps = live_neurons(captured.graph), find_steps(captured.graph)
        convs = [step for step in steps if step.kind == "conv"]
        work = {str(step.nodes[0].meta["title"]): multiply_adds(step, live)[1] for step in convs}
        return DenseTwin(lower(captured, steps, live, (), "reference", device=device), work)


def ideal_speedup(twin: DenseTwin, plan: Plan, images: Tensor, *, repeats: int = 3) -> float:
    """How much faster than its twin a model would be whose live multiply-adds run at the dense kernels' own rate.

    Every convolution of the twin is timed, with the ReLU and the sum behind it, and takes the share of its time that
    is the share of its work left: about p * p between two defective layers, p in the first layer behind them, 1
    further up. All else takes the time it takes.

    Args:
        twin: of the model that ``plan`` belongs to.
        plan: of the compact model.
        images: (N, C, H, W).
        repeats: runs of which each operation's least time counts.
    """
    left = {layer.name: layer.live / twin.work[layer.name] for layer in plan.layers if twin.work.get(layer.name)}
    dense = live = 0.0
    share = 1.0
    for node, seconds in _seconds(twin.module, images, repeats).items():
        is_layer = node.target is _CONV or bool(node.meta.get("title"))  # a batch norm of its own is a layer too
        if is_layer:
            share = left.get(str(node.meta.get("title")), 1.0)
        weight = share if is_layer or node.target in _BEHIND else 1.0
        dense, live = dense + seconds, live + weight * seconds
    return dense / max(live, 1e-12)


def _seconds(module: fx.GraphModule, images: Tensor, repeats: int) -> dict[fx.Node, float]:
    """The least time that each operation took, in the order in which they run."""
    clock = _Clock(module, images.device)
    with torch.inference_mode():
        clock.run(images)  # the first run allocates
        clock.least.clear()
        for _ in range(repeats):
            clock.run(images)
    return clock.least


class _Clock(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, device: torch.device) -> None:
        super().__init__(module)
        self.device = device
        self.least: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> object:
        start = time.perf_counter()
        result: object = super().run_node(n)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if n.op == "call_function":
            seconds = time.perf_counter() - start
            self.least[n] = min(seconds, self.least.get(n, seconds))
        return result
