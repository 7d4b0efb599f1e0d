"""Which operations of a graph mix the images of a batch: proven from shapes and arguments, never from values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from dcn_plugin.errors import TraceError

__all__ = ["check_graph", "first_mixing"]


def first_mixing(graph: fx.Graph) -> fx.Node | None:
    """The first operation that is not proven to keep the images of a batch apart; None: all of them do.

    A value holds the images one after the other along one axis, which an operation may move, or fold with the axes
    behind it, but not read across. What is not known here counts as mixing: then a batch is not cut, which is right
    for every network.

    Args:
        graph: see :func:`dcn_plugin.engine.capture.capture`.
    """
    return _Prover(graph).run()


def check_graph(model: nn.Module, graph: nn.Module, images: Tensor, *, exact: bool) -> bool:
    """Compare a graph to its model by numbers, and tell whether the model answers a batch as it answers its parts.

    Args:
        model: (N, C, H, W) -> a tensor.
        graph: traced from it.
        images: three or more that differ from each other.
        exact: whether the model is deterministic, so that the graph must give the same outputs.

    Raises:
        TraceError: the graph computes something else.
    """
    with torch.no_grad():
        expected = model(images)
        if not isinstance(expected, Tensor):
            return False
        if exact and _far(expected, graph(images)):
            raise TraceError(
                f"The graph that was traced from {type(model).__name__} computes something else for a batch of "
                f"{len(images)} images.",
                fix="use the model as it is",
            )
        try:
            return not _far(expected, torch.cat([model(images[:1]), model(images[1:])]))
        except (RuntimeError, ValueError):  # a network that normalises by its batch may refuse a single image
            return False


def _far(expected: Tensor, actual: Tensor) -> bool:
    """Whether outputs differ by more than the rounding that another batch size causes."""
    if expected.shape != actual.shape:
        return True
    limit = 1e-3 if expected.dtype in (torch.float32, torch.float64) else 5e-2
    return float((expected - actual).abs().max()) > limit * float(expected.abs().max())


class _NotProven(Exception):
    """An operation may mix images."""


_SIZE = -1
"""Stands for the axis of a number that is computed from the number of images."""


class _Prover:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        # Of each node the axis along which the images lie; None: it does not depend on them.
        self.axes: dict[fx.Node, int | None] = {}

    def run(self) -> fx.Node | None:
        for node in self.graph.nodes:
            try:
                self.axes[node] = self._of(node)
            except _NotProven:
                return node  # type: ignore[no-any-return]
        return None

    def _of(self, node: fx.Node) -> int | None:
        if node.op == "placeholder":
            size = node.meta["val"].shape[0]
            _require(isinstance(size, torch.SymInt))
            self.batch = size.node.expr
            return 0
        if node.op == "get_attr":
            return None
        if node.op == "output":
            for arg in node.all_input_nodes:
                _require(self.axes[arg] == 0 and self._images_an_entry(_shape(arg)[0]) == 1)
            return None
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        _require(node.op == "call_function" and not (drawn and _arguments(node).get("dropout_p") != 0.0))
        if not isinstance(node.meta.get("val"), Tensor | list | tuple):
            # A number: that of the images, or what follows from it.
            _require(
                all(self._is_size(arg) or node.target is torch.ops.aten.sym_size.int for arg in node.all_input_nodes)
            )
            return _SIZE
        axis = self._rule(node)
        for shape in _shapes(node):
            # Whatever the rule says: the images lie along this axis and along no other.
            many = [at for at, size in enumerate(shape) if isinstance(size, torch.SymInt)]
            _require(many == ([] if axis is None else [axis]) or (axis is None and _name(node) in _UNIFORM))
            _require(axis is None or self._images_an_entry(shape[axis]) is not None)
        return axis

    def _rule(self, node: fx.Node) -> int | None:
        name, given = _name(node), _arguments(node)
        sources = [source for source in node.all_input_nodes if not self._is_size(source)]
        read = [source for source in sources if self.axes[source] is not None]
        if name == "getitem":
            return self.axes[node.args[0]]  # type: ignore[index]
        sized = len(sources) < len(node.all_input_nodes)
        _require(not sized or name in _SIZED)
        if not read:
            # The same for every image, as long as nothing counts the images.
            counted = sized or any(isinstance(size, torch.SymInt) for source in sources for size in _shape(source))
            _require(not counted or name in _UNIFORM or _is_pointwise(node))
            return None
        if _is_pointwise(node):
            ends = {self._axis(source) - len(_shape(source)) for source in read}
            _require(len(ends) == 1)
            return ends.pop() + len(_shapes(node)[0])
        first = node.all_input_nodes[0]
        _require(self.axes[first] is not None or name in ("cat", "stack", "matmul", "einsum"))
        for names, rule in _RULES.items():
            if name in names:
                return rule(self, node, given, read)
        raise _NotProven

    def _axis(self, node: fx.Node) -> int:
        axis = self.axes[node]
        assert axis is not None
        return axis

    def _is_size(self, node: fx.Node) -> bool:
        return self.axes[node] == _SIZE

    def _images_an_entry(self, size: Any) -> int | None:
        """How many entries each image has along an axis of this size; None: no whole number."""
        many = _expression(size) / self.batch
        return int(many) if many.is_Integer else None

    def alone(self, read: list[fx.Node], node: fx.Node) -> int:
        """The axis of the only argument that depends on the images: the first one."""
        _require(read == [node.all_input_nodes[0]])
        return self._axis(read[0])


Given = Mapping[str, Any]
Rule = Callable[[_Prover, fx.Node, Given, list[fx.Node]], int]


def _behind(count: int) -> Rule:
    """Operations on the last ``count`` axes."""

    def rule(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
        axis = prover.alone(read, node)
        _require(axis < len(_shape(read[0])) - count)
        return axis

    return rule


def _first_axis(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    axis = prover.alone(read, node)
    _require(axis == 0)
    return axis


def _batch_norm(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    _require(not given["training"] and given["running_mean"] is not None and given["running_var"] is not None)
    return _first_axis(prover, node, given, read)


def _layer_norm(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    return _behind(len(given["normalized_shape"]))(prover, node, given, read)


def _pad(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    return _behind(len(given["pad"]) // 2)(prover, node, given, read)


def _reshaped(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    """The order of the values stays: the images lie along the axis with as many values before it."""
    axis, before, after = prover.alone(read[:1], node), _shape(read[0]), _shape(node)
    axes = [at for at, size in enumerate(after) if isinstance(size, torch.SymInt)]
    _require(
        len(axes) == 1 and math.prod(map(_expression, before[:axis])) == math.prod(map(_expression, after[: axes[0]]))
    )
    return axes[0]


def _expanded(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    return prover.alone(read[:1], node) + len(_shape(node)) - len(_shape(read[0]))


def _permuted(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    axis, rank = prover.alone(read, node), len(_shape(read[0]))
    order = list(range(rank))
    if "dims" in given:
        order = [dim % rank for dim in given["dims"]]
    elif "dim0" in given:
        first, second = given["dim0"] % rank, given["dim1"] % rank
        order[first], order[second] = second, first
    else:
        order.reverse()
    return order.index(axis)


def _other_axes(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    """Reads along some axes, and leaves the others as they are."""
    axis, dims = prover.alone(read, node), _dims(given, len(_shape(read[0])))
    _require(axis not in dims)
    return axis


def _reduced(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    axis, rank = prover.alone(read, node), len(_shape(read[0]))
    dims = _dims(given, rank)
    _require(axis not in dims)
    gone = 0 if len(_shapes(node)[0]) == rank else sum(dim < axis for dim in dims)
    return axis - gone


def _sliced(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    full_range = (given["start"] or 0) == 0 and given["end"] in (None, 2**63 - 1) and given["step"] == 1
    return prover.alone(read, node) if full_range else _other_axes(prover, node, given, read)


def _joined(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    axes, stacked = {prover._axis(source) for source in read}, _name(node) == "stack"
    _require(len(axes) == 1)
    axis = axes.pop()
    (dim,) = _dims(given, len(_shape(read[0])) + stacked)
    _require(stacked or dim != axis)
    return axis + (stacked and dim <= axis)


def _matmul(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    left, right = node.all_input_nodes if len(node.all_input_nodes) == 2 else (node.all_input_nodes * 2)
    rank = len(_shape(node))
    ends = {prover._axis(source) - len(_shape(source)) for source in read}
    _require(len(ends) == 1 and min(len(_shape(left)), len(_shape(right))) >= 2)
    end = ends.pop()
    # Along the rows of the left one or the columns of the right one, if the other is constant; else in front of both.
    allowed = end < -2 or (read == [left] and end == -2) or (read == [right] and end == -1)
    _require(allowed)
    return end + rank


def _attention(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    parts = [given[name] for name in ("query", "key", "value")]
    axes = {prover.axes[part] for part in parts}
    _require(set(read) <= set(parts) and len(axes) == 1 and len({len(_shape(part)) for part in parts}) == 1)
    axis = prover._axis(parts[0])
    _require(axis < len(_shape(node)) - 2)
    return axis


def _einsum(prover: _Prover, node: fx.Node, given: Given, read: list[fx.Node]) -> int:
    inputs, arrow, output = given["equation"].replace(" ", "").partition("->")
    _require(bool(arrow) and "." not in inputs)
    letters = {
        letter[prover._axis(tensor)]
        for letter, tensor in zip(inputs.split(","), given["tensors"], strict=True)
        if prover.axes[tensor] is not None
    }
    (letter,) = letters if len(letters) == 1 else (" ",)
    _require(output.count(letter) == 1)
    return int(output.index(letter))


_RULES: dict[frozenset[str], Rule] = {
    frozenset(names.split()): rule
    for names, rule in {
        "clone contiguous to _to_copy alias detach dropout feature_dropout alpha_dropout hardswish hardsigmoid prelu "
        "hardtanh relu6 selu celu softplus threshold nan_to_num type_as": _behind(0),
        "linear avg_pool1d max_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d": _behind(1),
        "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d max_pool2d_with_indices upsample_nearest2d "
        "upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad2d "
        "replication_pad2d": _behind(2),
        "pixel_shuffle pixel_unshuffle channel_shuffle im2col max_pool3d avg_pool3d adaptive_avg_pool3d": _behind(3),
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution group_norm "
        "instance_norm": _first_axis,
        "batch_norm": _batch_norm,
        "layer_norm rms_norm": _layer_norm,
        "pad constant_pad_nd": _pad,
        "view reshape flatten unflatten squeeze unsqueeze _unsafe_view view_as": _reshaped,
        "expand expand_as": _expanded,
        "permute transpose t numpy_T": _permuted,
        "softmax log_softmax _softmax _log_softmax cumsum cumprod flip roll glu sort argsort topk split "
        "split_with_sizes chunk index_select narrow unfold": _other_axes,
        "mean sum amax amin var std var_mean std_mean logsumexp prod any all linalg_vector_norm norm max min argmax "
        "argmin median select unbind": _reduced,
        "slice": _sliced,
        "cat stack": _joined,
        "matmul bmm mm": _matmul,
        "scaled_dot_product_attention": _attention,
        "einsum": _einsum,
    }.items()
}
_CREATED = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
_UNIFORM = frozenset((*_CREATED, "expand", "view", "reshape", "to", "_to_copy", "clone", "contiguous"))
"""Make the same values for every image out of nothing that depends on the images."""
_SIZED = _UNIFORM | {"flatten", "unflatten", "_unsafe_view"}
"""May be told how many images there are: it decides on a shape, and not on a value."""


def _require(proven: bool) -> None:
    if not proven:
        raise _NotProven


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return (
        str(getattr(node.target, "__name__", node.target)) if schema is None else str(schema.name).rpartition("::")[2]
    )


def _is_pointwise(node: fx.Node) -> bool:
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a node by name, defaults included."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {}
    given = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    given |= {argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)}
    return given | dict(node.kwargs)


def _dims(given: Given, rank: int) -> list[int]:
    """The axes that an operation reads along, as numbers from 0; all of them where it names none."""
    dims = given.get("dim", given.get("dims", given.get("dimension")))
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(rank))
    _require(isinstance(dims, int | list | tuple))
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]


def _shapes(node: fx.Node) -> list[Any]:
    """The shape of each tensor that a node computes."""
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else [value]
    return [tuple(part.shape) for part in parts if isinstance(part, Tensor)]


def _shape(node: fx.Node) -> Any:
    shapes = _shapes(node)
    _require(len(shapes) == 1)
    return shapes[0]


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else size
