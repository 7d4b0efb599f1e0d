"""Which neurons are zero for every input, derived from the graph, never from observed zeros."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dcn_plugin.engine.capture import shape_of
from dcn_plugin.engine.row_layout import Window

__all__ = ["ACTIVATIONS", "Live", "constant_of", "fixed_value", "keeps_zero", "live_neurons", "pool_window"]

_aten = torch.ops.aten

Live = dict[fx.Node, Tensor]
"""Of each node the neurons that may be other than 0: bool (C, H, W)."""

ACTIVATIONS = tuple(
    getattr(_aten, name).default
    for name in ("relu", "silu", "gelu", "leaky_relu", "elu", "mish", "hardswish", "relu6", "tanh", "hardtanh")
)
"""Act on each value alone, and 0 -> 0; hardtanh only where its range holds 0."""

_POOLS = (_aten.max_pool2d.default, _aten.avg_pool2d.default)


def live_neurons(graph: fx.Graph) -> Live:
    """The neurons that may be other than 0, for every node whose value is (N, C, H, W).

    A mask kills, a sum is the union, a pool the union over its window, a concatenation joins them; a convolution makes
    every neuron live, and so does whatever is not known here.

    Returns:
        bool (C, H, W) for each such node.
    """
    live: Live = {}
    for node in graph.nodes:
        shape = shape_of(node)
        if shape is not None and len(shape) == 3:
            mask = _rule(node, live)
            live[node] = torch.ones(shape, dtype=torch.bool) if mask is None else mask
            assert live[node].shape == shape, node
    return live


def _rule(node: fx.Node, live: Live) -> Tensor | None:
    target: Any = node.target
    sources = [live.get(source) for source in node.all_input_nodes]
    if node.op != "call_function":
        return None
    if target is _aten.mul.Tensor:
        return _product(node, live)
    if target is _aten.cat.default:
        parts: Any = node.args[0]
        joinable = all(mask is not None for mask in sources) and len(node.args) == 2 and node.args[1] in (1, -3)
        return torch.cat([live[part] for part in parts]) if joinable else None
    if any(mask is None for mask in sources) or not sources:
        return None
    first = sources[0]
    assert first is not None
    if target is _aten.add.Tensor and len(sources) == 2 and sources[1] is not None and first.shape == sources[1].shape:
        return first | sources[1]
    if keeps_zero(node):
        return first
    if target in _POOLS:
        return _pooled(node, first)
    return None


def _product(node: fx.Node, live: Live) -> Tensor | None:
    masks = [live[source] for source in node.all_input_nodes if source in live]
    constants = [value for source in node.all_input_nodes if (value := fixed_value(source)) is not None]
    if not masks or len(masks) + len(constants) != len(node.all_input_nodes):
        return None
    result = masks[0]
    for other in masks[1:]:
        result = result & other
    for value in constants:
        if value.ndim == 4 and len(value) == 1:
            result = result & (value[0] != 0).cpu()
        elif value.ndim > 0:
            return None
    return result


def _pooled(node: fx.Node, live: Tensor) -> Tensor:
    kernel, stride, padding, dilation, ceil = pool_window(node)
    pooled = F.max_pool2d(live[None].float(), kernel, stride, padding, dilation, ceil)
    # Also live: -inf, where a dilated window lies in the padding alone.
    return pooled[0] != 0


def pool_window(node: fx.Node) -> Window:
    """Kernel, stride, padding, dilation and ceil_mode of a max-pool or an average pool."""
    kernel, *rest = node.args[1:]
    rest = [*rest, *[None] * 4]
    dilation, ceil = (rest[2], rest[3]) if node.target is _aten.max_pool2d.default else (None, rest[2])
    return Window(_pair(kernel), _pair(rest[0] or kernel), _pair(rest[1] or 0), _pair(dilation or 1), bool(ceil))


def _pair(value: Any) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return int(values[0]), int(values[-1])


def keeps_zero(node: fx.Node) -> bool:
    """Whether a node acts on each value alone, and 0 -> 0."""
    if node.target is not _aten.hardtanh.default:
        return node.target in ACTIVATIONS
    low, high = (*node.args[1:], -1.0, 1.0)[:2] if len(node.args) == 1 else (*node.args[1:], math.inf)[:2]
    return float(low) <= 0 <= float(high)  # type: ignore[arg-type]


def constant_of(node: fx.Node) -> Tensor | None:
    """The value of a node that reads an attribute of the graph module; None: it is computed."""
    value = node.meta.get("val")
    return value if node.op == "get_attr" and isinstance(value, Tensor) else None


def fixed_value(node: fx.Node) -> Tensor | None:
    """As :func:`constant_of`, but None too for what training changes: a factor that is 0 or 1 now is no mask."""
    return None if node.meta.get("changes") else constant_of(node)
