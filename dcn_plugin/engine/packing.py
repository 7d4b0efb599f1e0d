"""What a sparse convolution reads and writes at each position, as lists of rows; all share the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dcn_plugin.engine.row_layout import Geometry, Window, readable

__all__ = ["CHUNKS", "Packed", "Windows", "pack_forward", "pack_input_grad", "packed_bytes", "pool_windows"]

Ints = NDArray[np.integer]
Longs = NDArray[np.int64]
Floats = NDArray[np.float32]
Stacked = tuple[NDArray[np.integer], NDArray[np.integer], Longs, Longs]
"""Reads (R, 2) and writes (W, 2) of all groups, and how many of each a group has."""

CHUNKS = 64
"""Pieces of about the same work that threads take one by one."""
_LINE = 16
"""Weights in a line of the cache."""
_VALUES = 2**22
"""Places in windows that are looked at together: more of them would only take more memory."""
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
    active = (mask & out_live).view(geometry.groups, -1, *mask.shape[1:]).sum(1)
    reads = int(readable(in_live, weight.shape[2:], geometry)[active > 0].sum())
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
    rows_in, rows_out, kernel = _array(in_index), _array(out_index), tuple(weight.shape[2:])
    active = _array(mask) & (rows_out >= 0)
    # For each group, tap and input channel the weights of the group's outputs.
    shared = _Shared(weight.unflatten(0, (geometry.groups, -1)).permute(0, 3, 4, 2, 1))
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
        padded = np.pad(rows_in, [(0, 0), *((pad, pad) for pad in geometry.padding)], constant_values=-1)
        high, wide = (_forward_taps(rows_out.shape[axis + 1], axis, kernel[axis], geometry) for axis in (0, 1))
        taps = np.arange(shared.taps).reshape(*kernel, -1)
        source, result, is_active = (_by_group(rows, geometry.groups) for rows in (padded, rows_out, active))
        groups = _joined([_grouped(source, high, wide, taps, result, is_active, shared), _copies(rows_out[alone])])
    return _packed(groups, shared.flat, bias_of, residual_of)


class _Shared:
    """The weights that all positions share, in blocks of outputs as wide as a line of the cache.

    Args:
        weight: float32 (groups, a, b, c, outputs); what a value is multiplied by is numbered along a, b, c: its tap.
    """

    def __init__(self, weight: Tensor) -> None:
        self.groups, outputs = len(weight), weight.shape[-1]
        self.taps = weight[0, ..., 0].numel()
        self.width = min(_LINE, outputs)
        self.blocks = -(-outputs // self.width)
        if missing := self.blocks * self.width - outputs:
            weight = F.pad(weight, (0, missing))
        self.flat = _array(weight.unflatten(-1, (-1, self.width)).movedim(-2, 1).flatten())

    def begin(self, group: Longs, taps: Longs) -> Longs:
        """Where the weights of these taps begin, each of its group."""
        begins: Longs = (group * self.blocks * self.taps + taps) * self.width
        return begins

    def place(self, outputs: Longs) -> Longs:
        """Offsets of these outputs' weights from where those of a tap begin."""
        places: Longs = outputs // self.width * self.taps * self.width + outputs % self.width
        return places


def _forward_taps(size: int, axis: int, taps: int, geometry: Geometry) -> Longs:
    """Where each of ``size`` outputs along an axis reads the padded input, at each tap: (size, taps)."""
    reads: Longs = np.arange(size)[:, None] * geometry.stride[axis] + np.arange(taps) * geometry.dilation[axis]
    return reads


def _copies(alone: Ints) -> Stacked:
    """Rows of the residual alone: groups of 64 that read nothing."""
    counts = np.full(-(-len(alone) // 64), 64, np.int64)
    counts[-1:] = len(alone) - 64 * (len(counts) - 1)
    writes = np.stack([alone, np.zeros_like(alone)], axis=1)
    return np.empty((0, 2), np.int64), writes, np.zeros_like(counts), counts


def pack_input_grad(weight: Tensor, in_index: Tensor, out_index: Tensor, mask: Tensor, geometry: Geometry) -> Packed:
    """List what the gradient with respect to the input does: it reads rows of the output and writes rows of the input.

    Args: as in :func:`pack_forward`.
    """
    rows_in, kernel = _array(in_index), tuple(weight.shape[2:])
    rows_out = np.where(_array(mask), _array(out_index), -1)
    # For each output and tap the weights of its group's input channels.
    shared = _Shared(weight.unflatten(0, (geometry.groups, -1)).permute(0, 1, 3, 4, 2))
    bias_of = np.zeros(_count(rows_in), dtype=np.float32)
    if _is_pointwise(weight.shape, geometry):
        groups = _pointwise(rows_out, rows_in, rows_in >= 0, rows_in < -1)
    else:
        # One position more, which no output has: what an input reads there does not exist.
        padded = np.pad(rows_out, [(0, 0), (0, 1), (0, 1)], constant_values=-1)
        high, wide = (
            _gradient_taps(rows_in.shape[axis + 1], axis, kernel[axis], rows_out.shape[axis + 1], geometry)
            for axis in (0, 1)
        )
        taps = np.arange(shared.taps).reshape(-1, *kernel).transpose(1, 2, 0)
        source, result = (_by_group(rows, geometry.groups) for rows in (padded, rows_in))
        groups = _grouped(source, high, wide, taps, result, result >= 0, shared)
    return _packed(groups, shared.flat, bias_of, None)


def _gradient_taps(size: int, axis: int, taps: int, outputs: int, geometry: Geometry) -> Longs:
    """Which output along an axis reads each of ``size`` inputs at each tap: (size, taps); ``outputs``: none does."""
    offset = np.arange(size)[:, None] + geometry.padding[axis] - np.arange(taps) * geometry.dilation[axis]
    output = offset // geometry.stride[axis]
    reads: Longs = np.where((offset % geometry.stride[axis] == 0) & (output >= 0) & (output < outputs), output, outputs)
    return reads


def _grouped(
    source: Ints, high: Longs, wide: Longs, taps: Longs, result: Ints, active: NDArray[np.bool_], shared: _Shared
) -> Stacked:
    """A group for each position at which something is written; positions are taken many at a time.

    Args:
        source: (groups, C, H, W), rows that are read or -1.
        high: (H', kh): where each position reads along the height of ``source``, at each tap; ``wide``: the width.
        taps: (kh, kw, C): the tap of ``shared`` by which a value is multiplied.
        result: (groups, C', H', W'), rows that are written.
        active: bool, likewise: which of them.
        shared: the weights.
    """
    by_position = np.ascontiguousarray(source.transpose(0, 2, 3, 1))
    written, is_written = result.transpose(0, 2, 3, 1), active.transpose(0, 2, 3, 1)
    begins = shared.begin(np.arange(len(source))[:, None], taps.ravel()).astype(np.int32)
    places = shared.place(np.arange(written.shape[3])).astype(np.int32)
    positions = np.stack(np.nonzero(is_written.any(axis=3)), axis=1)
    parts = []
    for some in np.array_split(positions, -(-len(positions) * taps.size // _VALUES) or 1):
        group, y, x = some.T
        windows = by_position[group[:, None, None], high[y][:, :, None], wide[x][:, None, :]]
        windows = windows.reshape(len(some), taps.size)
        is_read, writes = windows >= 0, is_written[group, y, x]
        parts.append(
            (
                np.stack([windows[is_read], begins[group][is_read]], axis=1),
                np.stack([written[group, y, x][writes], np.broadcast_to(places, writes.shape)[writes]], axis=1),
                is_read.sum(axis=1),
                writes.sum(axis=1),
            )
        )
    return _joined(parts)


def _joined(parts: Sequence[Stacked]) -> Stacked:
    reads, writes, read_counts, write_counts = map(np.concatenate, zip(*parts, strict=True))
    return reads, writes, read_counts, write_counts


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


def _by_group(values: NDArray[Any], groups: int) -> NDArray[Any]:
    """(C, H, W) -> (groups, C / groups, H, W)."""
    return values.reshape(groups, -1, *values.shape[1:])


def _starts(counts: Longs) -> Longs:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _count(rows: Ints) -> int:
    return int(rows.max(initial=-1)) + 1


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()
