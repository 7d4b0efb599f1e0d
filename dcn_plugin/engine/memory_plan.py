"""How a graph on rows runs where no gradient is wanted: in memory that is kept from batch to batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from dcn_plugin.engine import native, ops
from dcn_plugin.engine.row_layout import Geometry, Window

__all__ = ["Inference"]

_dcn = torch.ops.dcn_plugin
Fill = Callable[..., None]
"""Takes rows to be filled, then the values they are computed from."""


class Inference:
    """A graph whose rows are computed by the C kernel, for forward passes alone.

    PyTorch takes large tensors from the operating system and gives them back at once: their pages come anew at every
    call, which may take longer than the sparse convolution that fills them. Here all values on rows
    have their places in one block of memory, which values share that are not needed at the same time, and the kernel
    is called without the operators around it. The block is kept for the next batch; threads that run at the same time
    have a block each.

    Args:
        graph: see :func:`dcn_plugin.engine.lower.lower`; its lists are made, if they are not there yet.
        largest: the memory of larger batches is not kept.
    """

    def __init__(self, graph: fx.GraphModule, *, largest: int) -> None:
        starts, self.rows = _places(graph.graph)
        self._graph = _written(graph, starts)
        self._largest = largest
        self._spare: deque[Tensor] = deque(maxlen=1)

    def __call__(self, images: Tensor) -> Tensor:
        """The graph's output for images (N, C, H, W); it does not lie in the memory that is kept."""
        with self._memory(len(images)) as memory:
            result: Tensor = self._graph(images, memory)
        return result

    @contextmanager
    def _memory(self, count: int) -> Iterator[Tensor]:
        """A block (rows, count), for one call."""
        size = self.rows * count
        try:
            spare = self._spare.pop()
        except IndexError:  # not there yet, or another thread has it
            spare = torch.empty(0)
        block = spare
        if len(spare) < size:
            with torch.inference_mode(False):  # others cannot be written to outside of it
                block = torch.empty(size, dtype=torch.float32, device="cpu")
        try:
            yield block[:size].view(self.rows, count)
        finally:
            self._spare.append(block if len(block) <= self.rows * self._largest else spare)


def _places(graph: fx.Graph) -> tuple[dict[fx.Node, int], int]:
    """The first row of each value that the kernel writes, and how many rows there are in all.

    Values whose times of use do not overlap may share rows; each takes the first gap that is large enough.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    starts: dict[fx.Node, int] = {}
    ends: dict[fx.Node, tuple[int, int]] = {}  # the last reader, the row behind the last
    total = 0
    for node in graph.nodes:
        operator = _OPERATORS.get(node.target)
        if operator is None or node.args[-1] != "c":
            continue
        living = sorted((starts[other], end) for other, (last, end) in ends.items() if last >= order[node])
        start, rows = 0, operator.rows(node)
        for begin, end in living:
            if start + rows <= begin:
                break
            start = max(start, end)
        starts[node] = start
        ends[node] = max((order[reader] for reader in node.users), default=order[node]), start + rows
        total = max(total, start + rows)
    return starts, total


class _Filled(nn.Module):
    """Fills some rows of the memory, and returns them."""

    def __init__(self, fill: Fill, start: int, rows: int) -> None:
        super().__init__()
        self.fill, self.start, self.end = fill, start, start + rows

    def forward(self, memory: Tensor, *inputs: Tensor | None) -> Tensor:
        out = memory[self.start : self.end]
        self.fill(out, *inputs)
        return out


def _written(given: fx.GraphModule, starts: dict[fx.Node, int]) -> fx.GraphModule:
    """The same graph with one more input, the memory, in which the values of ``starts`` lie."""
    graph, root = fx.Graph(), nn.Module()
    for name, value in given.named_buffers():
        root.register_buffer(name, value, persistent=False)
    copies: dict[fx.Node, fx.Node] = {}
    memory: fx.Node | None = None
    for node in given.graph.nodes:
        if node in starts:
            operator, name = _OPERATORS[node.target], f"fill_{len(copies)}"
            root.add_module(name, _Filled(operator.fill(given, node), starts[node], operator.rows(node)))
            inputs = [copies[source] for source in node.args[: operator.values] if source is not None]
            assert memory is not None
            copies[node] = graph.call_module(name, (memory, *inputs))
        else:
            copies[node] = graph.node_copy(node, copies.__getitem__)
            if node.op == "placeholder":
                memory = graph.placeholder("memory")
    for node in list(graph.find_nodes(op="get_attr")):
        if not node.users:  # a weight or row numbers, which the lists stand for
            graph.erase_node(node)
    return fx.GraphModule(root, graph)


class _Operator(NamedTuple):
    """What fills the rows of an operator's result.

    Args:
        fill: makes it, for a node of the graph.
        values: how many of the first arguments are values, not constants.
        rows_at: place of the argument that says how many rows there are.
    """

    fill: Callable[[fx.GraphModule, fx.Node], Fill]
    values: int
    rows_at: int

    def rows(self, node: fx.Node) -> int:
        return cast(int, node.args[self.rows_at])


def _conv(graph: fx.GraphModule, node: fx.Node) -> Fill:
    weight, bias, in_index, out_index, mask, residual_index = (_value(graph, argument) for argument in node.args[2:8])
    stride, padding, dilation, groups, relu = node.args[8:13]
    geometry = Geometry(_pair(stride), _pair(padding), _pair(dilation), cast(int, groups))
    run = ops.conv_runner(weight, bias, in_index, out_index, mask, residual_index, geometry, "c")

    def fill(out: Tensor, x: Tensor, *other: Tensor) -> None:
        run(x.contiguous(), out, residual=other[0].contiguous() if other else None, relu=relu)

    return fill


def _pool(graph: fx.GraphModule, node: fx.Node) -> Fill:
    in_index, out_index = (_value(graph, argument) for argument in node.args[1:3])
    kernel, stride, padding, dilation, ceil = node.args[3:8]
    window = Window(_pair(kernel), _pair(stride), _pair(padding), _pair(dilation), bool(ceil))
    windows = ops.pool_lists(in_index, out_index, window)
    return lambda out, x: native.run_maxima(windows, x.contiguous(), out)


def _to_rows(graph: fx.GraphModule, node: fx.Node) -> Fill:
    cells, named = ops.cells_by_position(_value(graph, node.args[1]))
    return lambda out, images: native.to_rows(images, cells, out, named)


def _pair(values: Any) -> tuple[int, int]:
    return values[0], values[1]


def _value(graph: fx.GraphModule, node: Any) -> Any:
    return None if node is None else graph.get_buffer(str(node.target))


_OPERATORS: dict[Any, _Operator] = {
    _dcn.rows_conv.default: _Operator(_conv, values=2, rows_at=-2),
    _dcn.rows_max_pool.default: _Operator(_pool, values=1, rows_at=-2),
    _dcn.images_to_rows.default: _Operator(_to_rows, values=1, rows_at=2),
}
"""Those whose results lie in the memory."""
