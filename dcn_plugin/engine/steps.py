"""Groups the operations of a graph into the steps that the engine can run on rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from dcn_plugin.engine.capture import shape_of
from dcn_plugin.engine.liveness import constant_of, fixed_value, keeps_zero
from dcn_plugin.engine.row_layout import Geometry

__all__ = ["Conv", "Step", "find_steps"]

_aten = torch.ops.aten

Kind = Literal["conv", "sum", "act", "mask", "cat", "pool", "other"]


@dataclass(frozen=True, eq=False)
class Conv:
    """``relu(kept * norm(conv(x)) + residual)``.

    Args:
        weight: (O, I / groups, kh, kw); the batch norm of a network that is evaluated is folded in.
        bias: (O,), zeros where the convolution has none.
        geometry: of the convolution.
        kept: bool (O, H', W'): the mask, all True without one.
        relu: whether a ReLU ends it.
        norm: the ``aten.batch_norm`` of a network that is trained; None: there is none.
    """

    weight: Tensor
    bias: Tensor
    geometry: Geometry
    kept: Tensor
    relu: bool
    norm: fx.Node | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """Some operations of the graph that are run together.

    Args:
        kind: "conv", "sum" (of two), "act" (on each value alone, 0 -> 0), "mask", "cat" (of channels), "pool" (max);
            "other" runs on images only.
        nodes: what it covers, in order; the last one's value is that of the step.
        inputs: the values it reads, each that of a step's last node: x and the residual of a convolution.
        conv: of kind "conv".
    """

    kind: Kind
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]
    conv: Conv | None = field(default=None)

    @property
    def value(self) -> fx.Node:
        """The node whose value the step computes."""
        return self.nodes[-1]


def find_steps(graph: fx.Graph, *, training: bool = False) -> list[Step]:
    """All operations of a captured graph, in an order in which they can run; attributes are no steps.

    Args:
        graph: see :mod:`dcn_plugin.engine.capture`.
        training: whether it was captured for training: a convolution then has its norm with it.
    """
    taken: dict[fx.Node, Step] = {}
    place = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op == "get_attr" or node in taken:
            continue
        step = _conv(node, place, training) if node.target is _aten.conv2d.default else None
        step = step or _single(node)
        for member in step.nodes:
            # A chain ends at a later node, which an earlier chain may have taken: that one has it.
            assert member not in taken
            taken[member] = step
    steps = dict.fromkeys(taken[node] for node in graph.nodes if node in taken)
    return sorted(steps, key=lambda step: place[step.value])


def _single(node: fx.Node) -> Step:
    inputs = tuple(source for source in node.all_input_nodes if source.op != "get_attr")
    kind: Kind = "other"
    images = shape_of(node)
    if images is not None and len(images) == 3 and all(len(shape_of(source) or ()) == 3 for source in inputs):
        if node.target is _aten.mul.Tensor and _mask(node) is not None:
            kind = "mask"
        elif keeps_zero(node):
            kind = "act"
        elif node.target is _aten.max_pool2d.default:
            kind = "pool"
        elif node.target is _aten.add.Tensor and _plain_sum(node):
            kind = "sum"
        elif node.target is _aten.cat.default and len(node.args) == 2 and node.args[1] in (1, -3):
            # The list itself: a value may occur in it twice.
            parts: Any = node.args[0]
            if all(part.op != "get_attr" for part in parts):
                kind, inputs = "cat", tuple(parts)
    return Step(kind, (node,), inputs)


def _conv(node: fx.Node, place: dict[fx.Node, int], training: bool) -> Step | None:
    x, weight_node, bias_node, stride, padding, dilation, groups = node.args
    assert isinstance(weight_node, fx.Node) and isinstance(x, fx.Node)
    weight = constant_of(weight_node)
    bias = None if bias_node is None else constant_of(bias_node)  # type: ignore[arg-type]
    shape = shape_of(node)
    if weight is None or (bias_node is not None and bias is None) or shape is None or len(shape) != 3:
        return None
    nodes, inputs = [node], [x]
    conv_mask, relu = torch.ones(shape, dtype=torch.bool), False
    norm: fx.Node | None = None
    while (after := _only_reader(nodes[-1])) is not None:
        last = nodes[-1]
        mask = _mask(after)
        if training and len(nodes) == 1 and _is_norm(after, last):
            norm = after
        elif mask is not None and len(inputs) == 1 and not relu:
            conv_mask = conv_mask & mask
        elif after.target is _aten.relu.default and not relu:
            relu = True
        elif after.target is _aten.add.Tensor and len(inputs) == 1 and not relu and _plain_sum(after):
            other = next(source for source in after.all_input_nodes if source is not last)
            # Of two convolutions that are added, the later one takes the sum.
            if _runs_later(other, node, place):
                break
            inputs.append(other)
        else:
            break
        nodes.append(after)
    geometry = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups)  # type: ignore[arg-type]
    zeros = weight.new_zeros(len(weight)) if bias is None else bias
    return Step("conv", tuple(nodes), tuple(inputs), Conv(weight, zeros, geometry, conv_mask, relu, norm))


def _is_norm(node: fx.Node, source: fx.Node) -> bool:
    """Whether a node is a batch norm of ``source`` whose parameters, statistics and momentum are all known."""
    if node.target is not _aten.batch_norm.default or node.args[0] is not source:
        return False
    tensors, momentum = node.args[1:5], node.args[6]
    return isinstance(momentum, float) and all(
        tensor is None or (isinstance(tensor, fx.Node) and constant_of(tensor) is not None) for tensor in tensors
    )


def _runs_later(other: fx.Node, node: fx.Node, place: dict[fx.Node, int]) -> bool:
    """Whether ``other`` ends a chain that begins with a convolution behind ``node``."""
    while (other.target is _aten.mul.Tensor and _mask(other) is not None) or other.target is _aten.batch_norm.default:
        other = next(source for source in other.all_input_nodes if source.op != "get_attr")
    return other.target is _aten.conv2d.default and place[other] > place[node] and len(other.users) == 1


def _only_reader(node: fx.Node) -> fx.Node | None:
    if len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    return reader if reader.op == "call_function" else None


def _mask(node: fx.Node) -> Tensor | None:
    """The mask that a node multiplies with, bool (C, H, W); None: it is no such node."""
    if node.target is not _aten.mul.Tensor or len(node.all_input_nodes) != 2:
        return None
    factor = next((value for source in node.all_input_nodes if (value := fixed_value(source)) is not None), None)
    shape = shape_of(node)
    if factor is None or shape is None or len(shape) != 3 or factor.ndim != 4 or len(factor) != 1:
        return None
    if all(shape_of(source) != shape for source in node.all_input_nodes):
        return None  # it also repeats a smaller value
    values = factor[0].expand(shape)
    ones = values == 1
    return ones.cpu() if bool((ones | (values == 0)).all()) else None


def _plain_sum(node: fx.Node) -> bool:
    """Whether a node adds two images of the same shape."""
    sources = node.all_input_nodes
    same = len(sources) == 2 and all(shape_of(source) == shape_of(node) for source in sources)
    return bool(same and node.kwargs.get("alpha", 1) == 1)
