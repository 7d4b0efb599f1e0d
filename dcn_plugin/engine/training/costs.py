"""Measures on this machine what training a step costs on images and on rows, both ways through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, fx

from dcn_plugin.engine import ops
from dcn_plugin.engine.liveness import Live
from dcn_plugin.engine.ops import Backend
from dcn_plugin.engine.row_layout import number_rows
from dcn_plugin.engine.steps import Conv, Step
from dcn_plugin.engine.training.block import RowsBlock
from dcn_plugin.engine.training.lower import norm_of
from dcn_plugin.support.onednn import without_narrow_strides

__all__ = ["TrainingCosts", "forward_and_backward", "is_masked", "seconds"]

_MOST_IMAGES = 64
"""A larger batch is measured with so many of its images; both ways take time in proportion."""


def is_masked(conv: Conv) -> bool:
    """Whether a mask behind a convolution drops a neuron."""
    return not bool(conv.kept.all())


@dataclass(eq=False)
class TrainingCosts:
    """Milliseconds of a forward and a backward pass; implements :class:`dcn_plugin.engine.partition.Costs`.

    Args:
        captured: the graph, captured for training.
        live: of the graph.
        batch: images of a step.
        backend: of the rows.
        live_statistics: whether norms take their statistics from the neurons that masks keep; layers with such a mask
            then run on rows, whatever it costs.
        times: of each convolution that was measured, milliseconds on images and on rows.
    """

    captured: fx.GraphModule
    live: Live
    batch: int
    backend: Backend
    live_statistics: bool = False
    times: dict[Step, tuple[float, float]] = field(default_factory=dict)

    def images(self, step: Step) -> float:
        """Of a step on images."""
        if step.conv is None:
            return self._pass * self._values(step) * (step.kind != "other")
        if self.live_statistics and step.conv.norm is not None and is_masked(step.conv):
            return 1e12
        return self._measured(step, step.conv)[0]

    def rows(self, step: Step) -> float | None:
        """Of a step on rows; None: it cannot run there. A max-pool cannot: its gradient is computed on images."""
        if step.kind in ("other", "pool"):
            return None
        if step.conv is not None:
            return self._measured(step, step.conv)[1]
        return 0.0 if step.kind == "mask" else self._pass * float(self.live[step.value].sum())

    def conversion(self, node: fx.Node) -> tuple[float, float]:
        """Of a value to rows and back to images, each with the gradient the other way."""
        if node not in self.live:
            return 0.0, 0.0
        cost = self._move * self.live[node].numel()
        return (cost / 2 if node.op == "placeholder" else cost), cost

    def saved_by_packing(self, step: Step) -> float:
        """Nothing: weights change at every step."""
        return 0.0

    def _values(self, step: Step) -> float:
        return float(self.live[step.value].numel()) if step.value in self.live else 0.0

    @property
    def _count(self) -> int:
        return min(self.batch, _MOST_IMAGES)

    @cached_property
    def _largest(self) -> Tensor:
        """The neurons of the largest value."""
        return max(self.live.values(), key=Tensor.numel)

    @cached_property
    def _pass(self) -> float:
        """An operation on each value alone, per neuron."""
        images = _noise(self._count, self._largest.numel()).requires_grad_()
        return self._scaled(lambda: forward_and_backward(images.relu(), [images])) / self._largest.numel()

    @cached_property
    def _move(self) -> float:
        """A conversion to rows and its gradient, per neuron."""
        images = _noise(self._count, *self._largest.shape).contiguous(memory_format=torch.channels_last)
        images.requires_grad_()
        index, rows = number_rows(self._largest), int(self._largest.sum())

        def call() -> None:
            forward_and_backward(ops.to_rows(images, index, rows, self.backend), [images])

        return self._scaled(call) / self._largest.numel()

    def _scaled(self, call: Callable[[], object]) -> float:
        return 1e3 * seconds(call) * self.batch / self._count

    def _measured(self, step: Step, conv: Conv) -> tuple[float, float]:
        if step not in self.times:
            self.times[step] = self._scaled(self._on_images(step)), self._scaled(self._on_rows(step, conv))
        return self.times[step]

    def _input(self, node: fx.Node, value: Tensor) -> Tensor:
        # Nothing needs the gradient towards the images of a training set.
        return value.requires_grad_(node.op != "placeholder")

    def _on_images(self, step: Step) -> Callable[[], None]:
        graph, root, copies = fx.Graph(), torch.nn.Module(), {}
        inputs: list[Tensor] = []
        parameters: list[Tensor] = []
        for source in dict.fromkeys(step.inputs):
            copies[source] = graph.placeholder(f"input_{len(inputs)}")
            value = _noise(self._count, *self.live[source].shape).contiguous(memory_format=torch.channels_last)
            inputs.append(self._input(source, value))
        for node in step.nodes:
            for source in node.all_input_nodes:
                if source.op == "get_attr" and source not in copies:
                    value = getattr(self.captured, str(source.target)).detach().clone()
                    name = f"value_{len(copies)}"
                    root.register_buffer(name, value)
                    copies[source] = graph.get_attr(name)
                    if value.is_floating_point() and isinstance(source.meta.get("val"), torch.nn.Parameter):
                        parameters.append(value.requires_grad_())
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[step.value])
        run = fx.GraphModule(root, graph)
        without_narrow_strides(run)
        wanted = [value for value in (*inputs, *parameters) if value.requires_grad]
        return lambda: forward_and_backward(run(*inputs), wanted)

    def _on_rows(self, step: Step, conv: Conv) -> Callable[[], None]:
        indices = [number_rows(self.live[source]) for source in (*step.inputs, step.value)]
        residual_index = indices[1] if len(step.inputs) > 1 else None
        block = RowsBlock(
            indices[0],
            indices[-1],
            conv.kept,
            residual_index,
            tuple(conv.weight.shape),  # type: ignore[arg-type]
            conv.geometry,
            norm_of(conv, live_statistics=self.live_statistics),
            relu=conv.relu,
            backend=self.backend,
        )
        inputs = [
            self._input(source, _noise(int((index >= 0).sum()), self._count))
            for source, index in zip(step.inputs, indices, strict=False)
        ]
        weight = conv.weight.detach().clone().requires_grad_()
        channels = _noise(4, len(weight)).unbind() if conv.norm is not None else (None,) * 4
        residual = inputs[1] if residual_index is not None else None
        wanted = [value for value in (*inputs, weight) if value.requires_grad]
        return lambda: forward_and_backward(block(inputs[0], residual, weight, None, *channels), wanted)


def _noise(*shape: int) -> Tensor:
    """What the engine computes in, whatever the default dtype is."""
    return torch.rand(shape, dtype=torch.float32)


def forward_and_backward(out: Tensor, wanted: Sequence[Tensor]) -> None:
    """The gradient of the sum of ``out`` towards some tensors; what leads to no gradient at all is only computed."""
    if wanted and out.requires_grad:
        torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)


def seconds(call: Callable[[], object], *, repeats: int = 2) -> float:
    """The least time of some calls, after one that is not timed."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
