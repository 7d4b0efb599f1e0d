"""Writes the graph that runs: some steps on rows, the others on images, and the conversions between them."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from dcn_plugin.engine.liveness import Live, pool_window
from dcn_plugin.engine.ops import Backend
from dcn_plugin.engine.packed_conv import IMAGES_CONV, scale_of
from dcn_plugin.engine.row_layout import Geometry, number_rows
from dcn_plugin.engine.steps import Conv, Step

__all__ = ["Rows", "Writer", "lower", "write_in_place"]

_aten = torch.ops.aten


class Rows:
    """A value as rows: the node that computes them, and which row each neuron has."""

    def __init__(self, node: fx.Node, index: Tensor, rows: int) -> None:
        self.node, self.index, self.rows = node, index, rows


def lower(
    captured: fx.GraphModule,
    steps: list[Step],
    live: Live,
    on_rows: Collection[Step],
    backend: Backend,
    *,
    device: torch.device,
    packed: Collection[Step] = (),
) -> fx.GraphModule:
    """Build the graph in which the steps ``on_rows`` compute only the neurons that exist.

    Args:
        captured: see :func:`dcn_plugin.engine.capture.capture`.
        steps: of its graph, in order.
        live: see :func:`dcn_plugin.engine.liveness.live_neurons`.
        on_rows: none of kind "other".
        backend: of the operators.
        device: where the graph computes.
        packed: convolutions on images whose weights are laid out once.
    """
    return Writer(captured, live, frozenset(on_rows), frozenset(packed), backend, device).run(steps)


class Writer:
    """Copies the steps of a captured graph one by one; see :func:`lower` for its arguments."""

    def __init__(
        self,
        captured: fx.GraphModule,
        live: Live,
        on_rows: frozenset[Step],
        packed: frozenset[Step],
        backend: Backend,
        device: torch.device,
    ) -> None:
        self.captured, self.live, self.on_rows, self.packed = captured, live, on_rows, packed
        self.backend, self.device = backend, device
        self.graph, self.root = fx.Graph(), nn.Module()
        self.images: dict[fx.Node, fx.Node] = {}
        self.rows: dict[fx.Node, Rows] = {}
        self.attributes: dict[int, fx.Node] = {}
        # Attributes are known by the identity of the value they were made from, which another must not take over.
        self.kept_alive: list[Tensor] = []

    def run(self, steps: list[Step]) -> fx.GraphModule:
        """The graph of these steps, which are all of the captured one."""
        for step in steps:
            if step in self.on_rows:
                self.rows[step.value] = self.row_step(step)
            elif step.conv is None:
                self.copy(step)
            else:
                self.image_conv(step, step.conv)
        write_in_place(self.graph)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)

    def copy(self, step: Step) -> None:
        """A step on images, as it is."""
        for node in step.nodes:
            self._copy(node)

    def _copy(self, node: fx.Node) -> None:
        copy = self.graph.node_copy(node, self._as_images)
        copy.meta = dict(node.meta)
        self.images[node] = copy

    def image_conv(self, step: Step, conv: Conv) -> None:
        """A convolution on images; where it ends in a sum, that applies the mask without a pass of its own."""
        first, last = step.nodes[0], step.value
        scale = scale_of(conv)
        if scale is not None:
            weight, bias = map(self.attribute, scale)
            result = self._call_like(first, _aten.addcmul.default, bias, self._as_images(step.inputs[0]), weight)
            result.meta["title"] = first.meta.get("title")
            if len(step.inputs) > 1:
                result = self._call_like(last, _aten.add.Tensor, result, self._as_images(step.inputs[1]))
            self.images[last] = self._call_like(last, _aten.relu_.default, result) if conv.relu else result
            return
        self._copy(first)
        if step in self.packed:
            self.images[first].target = IMAGES_CONV
        if bool(conv.kept.all()):
            for before, node in itertools.pairwise(step.nodes):
                if node.target is _aten.mul.Tensor:  # a mask that keeps everything
                    self.images[node] = self.images[before]
                else:
                    self._copy(node)
            return
        result = self.images.pop(first)
        mask = conv.kept[None].to(conv.weight.dtype).contiguous(memory_format=torch.channels_last)
        if len(step.inputs) > 1:
            other = self._as_images(step.inputs[1])
            result = self._call_like(last, _aten.addcmul.default, other, result, self.attribute(mask))
        else:
            result = self._call_like(last, _aten.mul_.Tensor, result, self.attribute(mask))
        if conv.relu:
            result = self._call_like(last, _aten.relu_.default, result)
        self.images[last] = result

    def _call_like(self, node: fx.Node, target: Any, *args: fx.Node) -> fx.Node:
        call = self.graph.call_function(target, args)
        call.meta["val"] = node.meta["val"]
        return call

    def _as_images(self, node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            return self.attribute(getattr(self.captured, str(node.target)))
        if node not in self.images:
            rows = self.rows[node]
            self.images[node] = self.graph.call_function(
                torch.ops.dcn_plugin.rows_to_images.default, (rows.node, self.attribute(rows.index), self.backend)
            )
        return self.images[node]

    def as_rows(self, node: fx.Node) -> Rows:
        """A value as rows, converted where it is not."""
        if node not in self.rows:
            index = number_rows(self.live[node])
            count = int(self.live[node].sum())
            call = self.graph.call_function(
                torch.ops.dcn_plugin.images_to_rows.default,
                (self._as_images(node), self.attribute(index), count, self.backend),
            )
            self.rows[node] = Rows(call, index, count)
        return self.rows[node]

    def attribute(self, value: Tensor) -> fx.Node:
        """A tensor that the graph holds."""
        if id(value) not in self.attributes:
            name = f"constant_{len(self.attributes)}"
            self.root.register_buffer(name, value.to(self.device), persistent=False)
            self.kept_alive.append(value)
            self.attributes[id(value)] = self.graph.get_attr(name)
            self.attributes[id(value)].meta["val"] = value
        return self.attributes[id(value)]

    def row_step(self, step: Step) -> Rows:
        """A step on rows."""
        if step.kind == "conv":
            assert step.conv is not None
            return self.row_conv(step, step.conv)
        sources = [self.as_rows(source) for source in step.inputs]
        first = sources[0]
        if step.kind == "mask":
            # No work at all: the rows of dead neurons are not read any more.
            index = torch.where(self.live[step.value], first.index, -1)
            return Rows(first.node, index, first.rows)
        if step.kind == "act":
            node = step.value
            call = self.graph.call_function(node.target, (first.node, *node.args[1:]), dict(node.kwargs))  # type: ignore[arg-type]
            return Rows(call, first.index, first.rows)
        if step.kind == "cat":
            return self._cat(sources)
        if step.kind == "pool":
            return self._pool(step, first)
        assert step.kind == "sum"
        return self._sum(step, *sources)

    def _pool(self, step: Step, x: Rows) -> Rows:
        live = self.live[step.value]
        index, count = number_rows(live), int(live.sum())
        *window, ceil = pool_window(step.value)
        call = self.graph.call_function(
            torch.ops.dcn_plugin.rows_max_pool.default,
            (
                x.node,
                self.attribute(x.index),
                self.attribute(index),
                *map(list, window),
                ceil,
                count,
                self.backend,
            ),
        )
        return Rows(call, index, count)

    def _cat(self, sources: list[Rows]) -> Rows:
        call = self.graph.call_function(_aten.cat.default, ([source.node for source in sources], 0))
        parts, rows = [], 0
        for source in sources:
            parts.append(torch.where(source.index < 0, -1, source.index + rows))
            rows += source.rows
        return Rows(call, torch.cat(parts).to(torch.int32), rows)

    def _sum(self, step: Step, first: Rows, second: Rows) -> Rows:
        """A convolution of one summand with weight 1, whose residual is the other."""
        channels, dtype = len(first.index), step.value.meta["val"].dtype
        weight, bias = torch.ones(channels, 1, 1, 1, dtype=dtype), torch.zeros(channels, dtype=dtype)
        conv = Conv(weight, bias, Geometry(groups=channels), first.index >= 0, relu=False)
        return self._call(step, conv, first, second)

    def row_conv(self, step: Step, conv: Conv) -> Rows:
        """A convolution on rows."""
        x, *rest = (self.as_rows(source) for source in step.inputs)
        return self._call(step, conv, x, rest[0] if rest else None)

    def _call(self, step: Step, conv: Conv, x: Rows, residual: Rows | None) -> Rows:
        live = self.live[step.value]
        index, count = number_rows(live), int(live.sum())
        stride, padding, dilation, groups = conv.geometry
        call = self.graph.call_function(
            torch.ops.dcn_plugin.rows_conv.default,
            (
                x.node,
                None if residual is None else residual.node,
                self.attribute(conv.weight),
                self.attribute(conv.bias),
                self.attribute(x.index),
                self.attribute(index),
                self.attribute(conv.kept),
                None if residual is None else self.attribute(residual.index),
                list(stride),
                list(padding),
                list(dilation),
                groups,
                conv.relu,
                count,
                self.backend,
            ),
        )
        return Rows(call, index, count)


_IN_PLACE = {
    _aten.relu.default: _aten.relu_.default,
    _aten.add.Tensor: _aten.add_.Tensor,
    _aten.mul.Tensor: _aten.mul_.Tensor,
}
_FRESH = (
    _aten.conv2d.default,
    IMAGES_CONV,
    _aten.batch_norm.default,
    _aten.addcmul.default,
    _aten.add.Tensor,
    _aten.add_.Tensor,
    _aten.mul.Tensor,
    _aten.mul_.Tensor,
)
"""Operations whose result nobody else keeps. A ReLU is none of them: its gradient needs its result."""


def write_in_place(graph: fx.Graph) -> None:
    """Let an operation overwrite its first input where nothing else reads it: the graph saves allocations."""
    for node in graph.nodes:
        if node.target not in _IN_PLACE or node.op != "call_function":
            continue
        first = node.args[0]
        # A square reads its input twice, and its gradient needs it.
        once = node.args.count(first) == 1
        if isinstance(first, fx.Node) and first.target in _FRESH and len(first.users) == 1 and once:
            before, after = first.meta.get("val"), node.meta.get("val")
            if isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape:
                node.target = _IN_PLACE[node.target]
