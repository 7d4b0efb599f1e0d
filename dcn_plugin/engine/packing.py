"""What a sparse convolution reads and writes at each position, as lists of rows; all share the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dcn_plugin.engine.row_layout import Geometry, Window

__all__ = ["CHUNKS", "Packed", "Windows", "pack_forward", "pack_input_grad", "packed_bytes", "pool_windows"]

Ints = NDArray[np.integer]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Group = tuple[Ints, Ints, Ints, Ints]
"""Rows that are read, where the weights of each begin, rows that are written, their places among those weights."""
Stacked = tuple[NDArray[np.integer], NDArray[np.integer], Longs, Longs]
"""Reads (R, 2) and writes (W, 2) of all groups, and how many of each a group has."""

CHUNKS = 64
"""Pieces of about the same work that threads take one by one."""
_LINE = 16
"""Weights in a line of the cache."""
_ROW_COST = 4
"""Reading or writing a row costs about as much as this many multiply-adds of it; only the balance depends on it."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Groups of rows, one for each position (and group of a grouped convolution).

    Group g computes ``out[row] = bias + sum(weights[begin + place] * x[read] for read, begin in reads)`` for every
    (row, place) of its writes.

    Args:
        weights: float32, flat; those of all outputs for one input channel and tap lie in lines of the cache.
        reads: int32 (R, 2), of all groups one after the other: a row of the input, where its weights begin.
        writes: int32 (W, 2), likewise: a row of the output, its place among those weights.
        read_start: int64 (groups + 1,): group g has the reads from ``read_start[g]`` to ``read_start[g + 1]``.
        write_start: int64 (groups + 1,), likewise.
        bias: float32 (W,).
        chunks: int64, group numbers that split the work evenly.
        residual_rows: int32 (W,): the row to add, or -1; None: nothing is added.
    """

    weights: Floats
    reads: Ints
    writes: Ints
    read_start: Longs
    write_start: Longs
    bias: Floats
    chunks: Longs
    residual_rows: Ints | None = None

    @property
    def nbytes(self) -> int:
        """Memory of all lists."""
        return sum(part.nbytes for part in vars(self).values() if part is not None)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one image."""
        return int((np.diff(self.read_start) * np.diff(self.write_start)).sum())


@dataclass(frozen=True)
class Windows:
    """What each row of a max-pool reads.

    Args:
        reads: int32 (R,): rows of the input, of all rows of the output one after the other.
        read_start: int64 (rows + 1,): row r has the reads from ``read_start[r]`` to ``read_start[r + 1]``.
        with_zero: uint8 (rows,): whether a dead neuron lies in the window, whose 0 counts too.
    """

    reads: Ints
    read_start: Longs
    with_zero: NDArray[np.uint8]


def pool_windows(in_index: Tensor, out_index: Tensor, window: Window) -> Windows:
    """List what a max-pool reads.

    Args:
        in_index: int32 (C, H, W), rows of the input or -1.
        out_index: int32 (C, H', W'), numbers the rows of the output; -1 elsewhere.
        window: of the pool.
    """
    outside = -2
    kernel, stride, padding, dilation, _ = window
    rows_out = _array(out_index)
    channels, tall, broad = np.nonzero(rows_out >= 0)
    order = np.argsort(rows_out[channels, tall, broad])
    channels, tall, broad = channels[order], tall[order], broad[order]
    # Enough of the outside behind the image for windows that ceil_mode lets hang over its edge.
    after = [pad + step * size for pad, step, size in zip(padding, dilation, kernel, strict=True)]
    around = [(0, 0), *zip(padding, after, strict=True)]
    padded = np.pad(_array(in_index), around, constant_values=outside)
    taps = [
        padded[channels, tall * stride[0] + y * dilation[0], broad * stride[1] + x * dilation[1]]
        for y in range(kernel[0])
        for x in range(kernel[1])
    ]
    cells = np.stack(taps, axis=1) if len(channels) else np.empty((0, 1), np.int32)
    live = cells >= 0
    return Windows(
        reads=np.ascontiguousarray(cells[live], dtype=np.int32),
        read_start=_starts(live.sum(axis=1)),
        with_zero=(cells == -1).any(axis=1).astype(np.uint8),
    )


def packed_bytes(mask: Tensor, in_live: Tensor, out_live: Tensor, weight: Tensor, geometry: Geometry) -> int:
    """Memory of the lists of a convolution's forward pass, without making them.

    Args:
        mask: bool (O, H', W').
        in_live: bool (I, H, W); ``out_live``: bool (O, H', W').
        weight: (O, I / groups, kh, kw).
        geometry: of the convolution.
    """
    inputs, groups = weight.shape[1], geometry.groups
    window = torch.ones(groups, inputs, *weight.shape[2:])
    readable = F.conv2d(in_live[None].float(), window, None, *geometry[:3], groups)[0]
    active = (mask & out_live).view(groups, -1, *mask.shape[1:]).sum(1)
    reads = int(readable[active > 0].double().sum().round())
    writes = int(out_live.sum())
    # A pointwise convolution has a group for every row.
    blocks = writes if _is_pointwise(weight.shape, geometry) else int((active > 0).sum())
    return 8 * reads + 16 * writes + 16 * blocks + 4 * weight.numel()


def pack_forward(
    weight: Tensor,
    bias: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    mask: Tensor,
    residual_index: Tensor | None,
    geometry: Geometry,
) -> Packed:
    """List what a convolution does in its forward pass.

    Args:
        weight: float32 (O, I / groups, kh, kw).
        bias: float32 (O,).
        in_index: int32 (I, H, W), rows of the input or -1.
        out_index: int32 (O, H', W'), rows of the output or -1.
        mask: bool (O, H', W'): where the convolution's own value counts; elsewhere the output is the residual alone.
        residual_index: int32 (O, H', W'), rows of the residual or -1.
        geometry: of the convolution.
    """
    rows_in, rows_out = _array(in_index), _array(out_index)
    active = _array(mask) & (rows_out >= 0)
    # For each group, tap and input channel the weights of the group's outputs.
    by_group = weight.unflatten(0, (geometry.groups, -1)).permute(0, 3, 4, 2, 1)
    shared = _Shared(_array(by_group.flatten(1, 3)))
    bias_of = np.zeros(_count(rows_out), dtype=np.float32)
    bias_of[rows_out[active]] = np.broadcast_to(_array(bias)[:, None, None], active.shape)[active]
    residual_of = None
    if residual_index is not None:
        residual_of = np.full(len(bias_of), -1, dtype=np.int32)
        residual_of[rows_out[rows_out >= 0]] = _array(residual_index)[rows_out >= 0]
    alone = (rows_out >= 0) & ~active
    if _is_pointwise(weight.shape, geometry):
        groups = _pointwise(rows_in, rows_out, active, alone)
    else:
        groups = _stacked(
            [*_forward_groups(rows_in, rows_out, active, weight.shape, geometry, shared), *_copies(rows_out[alone])]
        )
    return _packed(groups, shared.flat, bias_of, residual_of)


class _Shared:
    """The weights that all positions share, in blocks of outputs as wide as a line of the cache.

    Args:
        matrix: float32 (groups, taps, outputs).
    """

    def __init__(self, matrix: Floats) -> None:
        self.groups, self.taps, outputs = matrix.shape
        self.width = min(_LINE, outputs)
        self.blocks = -(-outputs // self.width)
        padded = np.pad(matrix, [(0, 0), (0, 0), (0, self.blocks * self.width - outputs)])
        self.flat = padded.reshape(self.groups, self.taps, self.blocks, self.width).transpose(0, 2, 1, 3).ravel()

    def begin(self, group: int, taps: Longs) -> Longs:
        """Where the weights of these taps begin."""
        begins: Longs = (group * self.blocks * self.taps + taps) * self.width
        return begins

    def place(self, outputs: Longs) -> Longs:
        """Offsets of these outputs' weights from where those of a tap begin."""
        places: Longs = outputs // self.width * self.taps * self.width + outputs % self.width
        return places


def _forward_groups(
    rows_in: Ints, rows_out: Ints, active: NDArray[np.bool_], shape: Sequence[int], geometry: Geometry, shared: _Shared
) -> Iterator[Group]:
    outputs, inputs, high, wide = shape
    groups = geometry.groups
    outputs //= groups
    padded = np.pad(rows_in, [(0, 0), *((pad, pad) for pad in geometry.padding)], constant_values=-1)
    padded = padded.reshape(groups, inputs, *padded.shape[1:])
    by_group = rows_out.reshape(groups, outputs, *rows_out.shape[1:])
    active = active.reshape(groups, outputs, *active.shape[1:])
    (down, right), (every_down, every_right) = geometry.stride, geometry.dilation
    for group, y, x in zip(*np.nonzero(active.any(axis=1)), strict=True):
        top, left = y * down, x * right
        high_end, wide_end = top + (high - 1) * every_down + 1, left + (wide - 1) * every_right + 1
        window = padded[group, :, top:high_end:every_down, left:wide_end:every_right].transpose(1, 2, 0).ravel()
        taps = np.flatnonzero(window >= 0)
        channels = np.flatnonzero(active[group, :, y, x])
        yield window[taps], shared.begin(group, taps), by_group[group, channels, y, x], shared.place(channels)


def _copies(alone: Ints) -> Iterator[Group]:
    """Rows of the residual alone: groups that read nothing."""
    for at in range(0, len(alone), 64):
        some = alone[at : at + 64]
        yield some[:0], some[:0], some, np.zeros_like(some)


def pack_input_grad(weight: Tensor, in_index: Tensor, out_index: Tensor, mask: Tensor, geometry: Geometry) -> Packed:
    """List what the gradient with respect to the input does: it reads rows of the output and writes rows of the input.

    Args: as in :func:`pack_forward`.
    """
    rows_in, rows_out = _array(in_index), np.where(_array(mask), _array(out_index), -1)
    # For each output and tap the weights of its group's input channels.
    shared = _Shared(_array(weight.permute(0, 2, 3, 1).reshape(geometry.groups, -1, weight.shape[1])))
    bias_of = np.zeros(_count(rows_in), dtype=np.float32)
    if _is_pointwise(weight.shape, geometry):
        groups = _pointwise(rows_out, rows_in, rows_in >= 0, rows_in < -1)
    else:
        groups = _stacked([*_grad_groups(rows_in, rows_out, weight.shape, geometry, shared)])
    return _packed(groups, shared.flat, bias_of, None)


def _grad_groups(
    rows_in: Ints, rows_out: Ints, shape: Sequence[int], geometry: Geometry, shared: _Shared
) -> Iterator[Group]:
    outputs, inputs, high, wide = shape
    groups = geometry.groups
    outputs //= groups
    by_group = rows_out.reshape(groups, outputs, *rows_out.shape[1:])
    in_by_group = rows_in.reshape(groups, inputs, *rows_in.shape[1:])
    numbers = np.arange(outputs * high * wide).reshape(outputs, high, wide)
    for group, y, x in zip(*np.nonzero((in_by_group >= 0).any(axis=1)), strict=True):
        ys, taps_y = _outputs_that_read(y, high, rows_out.shape[1], geometry, axis=0)
        xs, taps_x = _outputs_that_read(x, wide, rows_out.shape[2], geometry, axis=1)
        sources = by_group[group][:, ys[:, None], xs].transpose(1, 2, 0).ravel()
        taps = numbers[:, taps_y[:, None], taps_x].transpose(1, 2, 0).ravel()
        read = np.flatnonzero(sources >= 0)
        channels = np.flatnonzero(in_by_group[group, :, y, x] >= 0)
        yield sources[read], shared.begin(group, taps[read]), in_by_group[group, channels, y, x], shared.place(channels)


def _outputs_that_read(at: int, taps: int, size: int, geometry: Geometry, *, axis: int) -> tuple[Longs, Longs]:
    """Output coordinates along one axis whose window covers input coordinate ``at``, and at which tap."""
    tap = np.arange(taps)
    offset = at + geometry.padding[axis] - tap * geometry.dilation[axis]
    where = offset // geometry.stride[axis]
    fits = (offset % geometry.stride[axis] == 0) & (where >= 0) & (where < size)
    return where[fits], tap[fits]


def _is_pointwise(shape: Sequence[int], geometry: Geometry) -> bool:
    """Whether each output is one input times a number: batch norms and sums are written like that."""
    return tuple(shape) == (geometry.groups, 1, 1, 1) and geometry[:2] == ((1, 1), (0, 0))


def _pointwise(source: Ints, result: Ints, active: NDArray[np.bool_], alone: NDArray[np.bool_]) -> Stacked:
    """One group for each row; all at once, since there are many."""
    channels, _, _ = np.nonzero(active)
    rows, read, copied = result[active], source[active], result[alone]
    reads = np.stack([read, channels], axis=1)[read >= 0]
    writes = np.stack([np.concatenate([rows, copied]), np.zeros(len(rows) + len(copied), np.int32)], axis=1)
    counts = np.concatenate([read >= 0, np.zeros(len(copied), bool)]).astype(np.int64)
    return reads, writes, counts, np.ones(len(writes), np.int64)


def _stacked(groups: Sequence[Group]) -> Stacked:
    def joined(at: int) -> NDArray[np.integer]:
        return np.concatenate([group[at] for group in groups]) if groups else np.empty(0, np.int64)

    counts = [np.array([len(group[at]) for group in groups], dtype=np.int64) for at in (0, 2)]
    return np.stack([joined(0), joined(1)], axis=1), np.stack([joined(2), joined(3)], axis=1), counts[0], counts[1]


def _packed(groups: Stacked, weights: Floats, bias_of: Floats, residual_of: Ints | None) -> Packed:
    reads, writes, read_counts, write_counts = groups
    cost = np.cumsum(read_counts * write_counts + _ROW_COST * (read_counts + write_counts))
    ends = np.searchsorted(cost, np.linspace(0, cost[-1] if len(cost) else 0, CHUNKS + 1)[1:-1]) + 1
    chunks = np.concatenate([[0], np.minimum(ends, len(cost)), [len(cost)]])
    return Packed(
        weights=np.ascontiguousarray(weights, dtype=np.float32),
        reads=np.ascontiguousarray(reads, dtype=np.int32),
        writes=np.ascontiguousarray(writes, dtype=np.int32),
        read_start=_starts(read_counts),
        write_start=_starts(write_counts),
        bias=bias_of[writes[:, 0]],
        chunks=np.unique(chunks).astype(np.int64),
        residual_rows=None if residual_of is None else residual_of[writes[:, 0]],
    )


def _starts(counts: Longs) -> Longs:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _count(rows: Ints) -> int:
    return int(rows.max(initial=-1)) + 1


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()
