"""Rewrites of a captured graph that give a runtime less to do, and leave every value as it is."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dcn_plugin.engine.capture import shape_of
from dcn_plugin.engine.liveness import fixed_value

__all__ = ["contiguous", "factor_of", "mask_nodes", "move_masks", "use_functions"]

_aten = torch.ops.aten

_FUNCTIONS = {
    _aten.conv2d.default: F.conv2d,
    _aten.linear.default: F.linear,
    _aten.relu.default: F.relu,
    _aten.silu.default: F.silu,
    _aten.max_pool2d.default: F.max_pool2d,
    _aten.add.Tensor: operator.add,
    _aten.mul.Tensor: operator.mul,
}


def mask_nodes(graph: fx.Graph) -> Iterator[fx.Node]:
    """The products with a mask, in the order in which they run."""
    yield from (node for node in graph.nodes if factor_of(node) is not None)


def factor_of(node: fx.Node) -> fx.Node | None:
    """The mask that a node multiplies with: the node that reads a constant of zeros and ones, 1 x one activation.

    None: the node is no such product.
    """
    shape = shape_of(node)
    if node.target is not _aten.mul.Tensor or shape is None or len(node.all_input_nodes) != 2:
        return None
    for source in node.all_input_nodes:
        value = fixed_value(source)
        if value is not None and value.shape == (1, *shape) and bool(((value == 0) | (value == 1)).all()):
            return source
    return None


def move_masks(graph: fx.GraphModule) -> None:
    """Put every mask behind the ReLU that follows it.

    The convolution is then followed by its ReLU, which runtimes compute in one pass. The values behind both are the
    same: ``relu(M * x) = M * relu(x)``. A ReLU that is bounded, such as ReLU6, becomes a ReLU and the minimum of its
    value and ``6 * M``: onnxruntime runs a ReLU inside of the convolution, and a clip as a pass of its own. Other
    activations stay behind their masks: OpenVINO runs both in one pass.

    Args:
        graph: captured; changed in place.
    """
    for node in list(mask_nodes(graph.graph)):
        reader = next(iter(node.users)) if len(node.users) == 1 else None
        bound = None if reader is None else _upper_bound(reader)
        if reader is None or bound is None:
            continue
        factor = factor_of(node)
        assert factor is not None
        (x,) = (source for source in node.all_input_nodes if source is not factor)
        with graph.graph.inserting_before(reader):
            relu = graph.graph.call_function(_aten.relu.default, (x,))
            if bound == math.inf:
                masked = graph.graph.call_function(_aten.mul.Tensor, (relu, factor))
            else:
                top = _constant(graph, factor.meta["val"] * bound)
                masked = graph.graph.call_function(_aten.minimum.default, (relu, top))
        for new in (relu, masked):
            new.meta["val"] = reader.meta["val"]
        masked.meta["site"] = node.meta.get("site")
        reader.replace_all_uses_with(masked)
        graph.graph.erase_node(reader)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def contiguous(graph: fx.GraphModule) -> None:
    """Lay all constants out in their plain order: ExecuTorch's XNNPACK backend refuses weights in channels_last."""
    for name, value in list(graph.named_buffers()):
        setattr(graph, name, value.contiguous())
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = getattr(graph, str(node.target))


def use_functions(graph: fx.GraphModule) -> None:
    """Call torch's functions in the place of ATen's operators, where both take the same arguments.

    torchao's quantiser for x86 looks for layers by the functions that they call, and leaves a graph of operators in
    floating point without a word.
    """
    for node in graph.graph.nodes:
        if node.target in _FUNCTIONS and not node.kwargs:
            node.target = _FUNCTIONS[node.target]
    graph.recompile()


def _upper_bound(node: fx.Node) -> float | None:
    """The largest value of an activation that is 0 below 0 and the identity up to there; None: it is another one."""
    if node.target is _aten.relu.default:
        return math.inf
    if node.target is _aten.relu6.default:
        return 6.0
    low, high = [*node.args[1:], None, None][:2]
    if node.target is _aten.hardtanh.default and low == 0 and isinstance(high, int | float) and high > 0:
        return float(high)
    return None


def _constant(graph: fx.GraphModule, value: Tensor) -> fx.Node:
    name = f"bound_{sum(1 for _ in graph.buffers())}"
    graph.register_buffer(name, value, persistent=False)
    node = graph.graph.get_attr(name)
    node.meta["val"] = value
    return node
