"""What training computes at each position of a convolution, as lists of rows for the C kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcn_plugin.engine.row_layout import Geometry, number_rows

__all__ = ["PAD", "Items", "computed_neurons", "list_items", "pack_weight", "unpack_weight"]

PAD = 16
"""Weights of one input are padded to a multiple of this, the widest vector."""

_CHUNKS = 64
"""Pieces of about the same work that threads take one by one."""
_ROW_COST = 4
"""Reading or writing a row costs about as much as this many multiply-adds of it; only the balance depends on it."""


@dataclass(frozen=True, eq=False)
class Items:
    """Items are output positions, each once for every group of the convolution; group is the faster number.

    Item i computes ``y[row] = sum(weight[begin + place] * x[read] for read, begin in its reads)`` for each of its rows
    of y, which are numbered by item, then by output.

    Args:
        reads: int32 (R, 2), of all items one after the other: a row of x, where its weights begin.
        read_start: int64 (items + 1,): item i has the reads from ``read_start[i]`` to ``read_start[i + 1]``.
        places: int32 (Y,): of each row of y, its output within the group.
        write_start: int64 (items + 1,): which rows of y an item has.
        chunks: int64, item numbers that split the work evenly.
        counts: int64 (chunks, O): how many rows of y each output channel has in each chunk.
        grad_rows: int32 (Y,): of each row of y, its row behind norm and mask, or -1.
        rows: int32 (rows, 3): of each row behind norm and mask: its row of y or -1, its channel, the row of the
            residual that is added or -1.
        width: weights of one input, padded.
    """

    reads: NDArray[np.int32]
    read_start: NDArray[np.int64]
    places: NDArray[np.int32]
    write_start: NDArray[np.int64]
    chunks: NDArray[np.int64]
    counts: NDArray[np.int64]
    grad_rows: NDArray[np.int32]
    rows: NDArray[np.int32]
    width: int

    @property
    def nbytes(self) -> int:
        """Memory of all lists."""
        return sum(part.nbytes for part in vars(self).values() if isinstance(part, np.ndarray))

    @cached_property
    def aligned(self) -> bool:
        """Whether the rows behind norm and mask are those of y, in the same order."""
        return np.array_equal(self.rows[:, 0], np.arange(len(self.places)))

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass for one image."""
        return int((np.diff(self.read_start) * np.diff(self.write_start)).sum())


def computed_neurons(kept: Tensor, out_live: Tensor, *, all_neurons: bool) -> Tensor:
    """Which values of a convolution are computed: bool (O, H', W').

    Args:
        kept: bool (O, H', W'): the mask behind it.
        out_live: bool (O, H', W'): which neurons of the step exist.
        all_neurons: whether the norm's statistics are over all neurons, the masked ones too.
    """
    return torch.ones_like(kept) if all_neurons else kept & out_live


def list_items(
    in_index: Tensor,
    out_index: Tensor,
    kept: Tensor,
    computed: Tensor,
    residual_index: Tensor | None,
    weight_shape: Sequence[int],
    geometry: Geometry,
) -> Items:
    """List what a convolution does in training.

    Args:
        in_index: int32 (I, H, W), rows of the input or -1.
        out_index: int32 (O, H', W'), rows behind norm and mask, or -1.
        kept: bool (O, H', W'): where the convolution's own value counts behind the mask.
        computed: bool (O, H', W'): where it is computed, see :func:`computed_neurons`.
        residual_index: int32 (O, H', W'), rows of the residual or -1.
        weight_shape: (O, I / groups, kh, kw).
        geometry: of the convolution.
    """
    outputs, inputs, high, wide = weight_shape
    groups = geometry.groups
    width = -(-(outputs // groups) // PAD) * PAD
    by_item = computed.view(groups, outputs // groups, *computed.shape[1:]).permute(2, 3, 0, 1)
    written = by_item.reshape(-1, outputs // groups).numpy()
    windows = _windows(in_index.numpy(), inputs, (high, wide), computed.shape[1:], geometry)
    windows[~written.any(axis=1)] = -1
    item, tap = np.nonzero(windows >= 0)
    begins = (item % groups * windows.shape[1] + tap) * width
    read_start, write_start = _starts((windows >= 0).sum(axis=1)), _starts(written.sum(axis=1))
    y_index = number_rows(computed)
    behind = torch.where(kept, out_index, -1)
    chunks = _chunks(np.diff(read_start), np.diff(write_start))
    owner = np.repeat(np.arange(len(chunks) - 1), np.diff(write_start[chunks]))
    counts = np.zeros((len(chunks) - 1, outputs), dtype=np.int64)
    np.add.at(counts, (owner, _in_order(_channels(computed), y_index)), 1)
    residual_rows = torch.full_like(out_index, -1) if residual_index is None else residual_index
    rows = [torch.where(kept, y_index, -1), _channels(kept), residual_rows]
    return Items(
        reads=np.stack([windows[item, tap], begins], axis=1).astype(np.int32),
        read_start=read_start,
        places=np.nonzero(written)[1].astype(np.int32),
        write_start=write_start,
        chunks=chunks,
        counts=counts,
        grad_rows=_in_order(behind, y_index).astype(np.int32),
        rows=np.ascontiguousarray(np.stack([_in_order(part, out_index) for part in rows], axis=1), dtype=np.int32),
        width=width,
    )


def _windows(
    rows: NDArray[np.int32], inputs: int, kernel: tuple[int, int], size: Sequence[int], geometry: Geometry
) -> NDArray[np.int32]:
    """The row of every input of every item's window, or -1: (items, kh * kw * inputs of a group)."""
    (down, right), (every_down, every_right) = geometry.stride, geometry.dilation
    padded = np.pad(rows, [(0, 0), *((pad, pad) for pad in geometry.padding)], constant_values=-1)
    spread = ((kernel[0] - 1) * every_down + 1, (kernel[1] - 1) * every_right + 1)
    views = np.lib.stride_tricks.sliding_window_view(padded, spread, axis=(1, 2))
    views = views[:, ::down, ::right, ::every_down, ::every_right][:, : size[0], : size[1]]
    by_group = views.reshape(geometry.groups, inputs, *views.shape[1:])
    # A copy, always: the views above are read-only.
    return np.array(by_group.transpose(2, 3, 0, 4, 5, 1), order="C").reshape(-1, kernel[0] * kernel[1] * inputs)


def _channels(like: Tensor) -> Tensor:
    return torch.arange(len(like), dtype=torch.int32)[:, None, None].expand(like.shape)


def _in_order(values: Tensor, index: Tensor) -> NDArray[np.int32]:
    """The values of the neurons that ``index`` numbers, in the order of their rows."""
    numbered = index >= 0
    ordered = torch.empty(int(numbered.sum()), dtype=torch.int32)
    ordered[index[numbered].long()] = values[numbered].to(torch.int32)
    return ordered.numpy()


def _chunks(reads: NDArray[np.int64], writes: NDArray[np.int64]) -> NDArray[np.int64]:
    cost = np.cumsum(reads * writes + _ROW_COST * (reads + writes))
    ends = np.searchsorted(cost, np.linspace(0, cost[-1] if len(cost) else 0, _CHUNKS + 1)[1:-1]) + 1
    return np.unique(np.concatenate([[0], np.minimum(ends, len(cost)), [len(cost)]])).astype(np.int64)


def _starts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def pack_weight(weight: Tensor, groups: int, width: int) -> Tensor:
    """(O, I / groups, kh, kw) -> (groups * kh * kw * I / groups, width): the outputs of each input side by side."""
    by_output = weight.unflatten(0, (groups, -1)).permute(0, 1, 3, 4, 2).flatten(2)
    by_input = by_output.transpose(1, 2).flatten(0, 1)
    return torch.nn.functional.pad(by_input, (0, width - by_input.shape[1])).contiguous()


def unpack_weight(packed: Tensor, like: Tensor, groups: int) -> Tensor:
    """The inverse of :func:`pack_weight`, with the shape and the strides of ``like``."""
    outputs, inputs, high, wide = like.shape
    by_group = packed[:, : outputs // groups].view(groups, high, wide, inputs, outputs // groups)
    # DistributedDataParallel warns of every other layout, even of a side of length 1.
    return torch.empty_like(like).copy_(by_group.permute(0, 4, 3, 1, 2).reshape(outputs, inputs, high, wide))
