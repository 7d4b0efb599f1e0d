"""The Triton backend: moves the lists of rows to the GPU once, chooses a kernel for them, and starts it.

Nothing here has been timed: the tile sizes follow from counting, as their comments say.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcn_plugin.engine.packing import Packed

__all__ = ["run_gemm", "triton_problem"]

PRECISION: Literal["ieee", "tf32x3", "tf32"] = "ieee"
"""Of the matrix products. "ieee" is float32, without tensor cores, exact up to rounding; "tf32x3" takes three products
on tensor cores for nearly the same; "tf32" keeps 10 bits of its inputs, too few for the 1e-4 of compact()."""

PRODUCT_OUTPUTS = (16, 32, 64)
"""Rows of the output that one program may compute, so that they share what it reads. With 64 images and four warps
these are 8, 16 and 32 sums a thread."""

READS = 16
"""Rows that a product reads at once. Compiled for compute capability 8.0, all sizes above stay in registers with 16;
with 32, the largest does not, and fewer programs fit a multiprocessor."""

SUM_OUTPUTS = 16
"""Rows of the output of one program that sums them one by one. It takes as many steps as the longest of them."""

IMAGES = 64
"""Most images of one program: two full lines of 128 bytes of a row."""
LEAST_IMAGES = 16
"""Fewest: the smallest tile of a matrix product."""

ROW_COST = 8
"""Reading a value costs about as much as this many multiply-adds: in a cycle a multiprocessor does 128 of them, and
reads 32 floats from its own cache, about half as many from the common one."""


def triton_problem(device: torch.device | None = None) -> str | None:
    """Why the Triton backend cannot be used; None: it can.

    Args:
        device: of the model; None: any.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device, and Triton does not interpret (TRITON_INTERPRET=1, set before it is imported)"
    return None if device is None or device.type == "cuda" else f"the model is on {device}"


def run_gemm(packed: Packed, x: Tensor, out: Tensor, *, residual: Tensor | None = None, relu: bool = False) -> None:
    """Fill the rows of ``out`` that ``packed`` computes.

    Args:
        packed: its rows lie within ``x``, ``residual`` and ``out``.
        x: float32 (rows, N), contiguous, on a GPU (anywhere when Triton interprets); ``residual`` and ``out`` too.
        out: overwritten.
        residual: added before ``relu``; if and only if packed with its rows.
        relu: negative values become 0.
    """
    given = [rows for rows in (x, out, residual) if rows is not None]
    assert all(rows.is_contiguous() and rows.dtype == torch.float32 and rows.device == x.device for rows in given)
    assert (residual is None) == (packed.residual_rows is None)
    batch = x.shape[1]
    if batch == 0 or not len(packed.writes):
        return
    lists = _lists_on(packed, x.device)
    images = min(IMAGES, max(LEAST_IMAGES, 1 << (batch - 1).bit_length()))
    with torch.cuda.device_of(x):
        lists.kernel[lists.programs, -(-batch // images)](
            x,
            lists.weights,
            residual,
            out,
            *lists.rows,
            batch=batch,
            RESIDUAL=residual is not None,
            RELU=relu,
            IMAGES=images,
            **lists.options,
        )


@dataclass(frozen=True, eq=False)
class _Lists:
    """What a kernel is started with.

    Args:
        kernel: of triton_jit.
        programs: along the first axis of its grid; the second one is that of the images.
        weights: on the device.
        rows: its lists, on the device, in the order of its arguments.
        options: its other arguments.
    """

    kernel: Any
    programs: int
    weights: Tensor
    rows: tuple[Tensor | None, ...]
    options: dict[str, Any]


_known: WeakKeyDictionary[Packed, dict[torch.device, _Lists]] = WeakKeyDictionary()


def _lists_on(packed: Packed, device: torch.device) -> _Lists:
    """The lists on a device, moved at the first call and kept as long as ``packed``."""
    by_device = _known.setdefault(packed, {})
    if device not in by_device:
        by_device[device] = _make(packed, lambda array: torch.from_numpy(np.ascontiguousarray(array)).to(device))
    return by_device[device]


def _make(packed: Packed, move: Callable[[NDArray[np.generic]], Tensor]) -> _Lists:
    from dcn_plugin.engine import triton_jit  # imports Triton, which `import dcn_plugin` does not

    outputs = best_outputs(packed)
    options: dict[str, Any]
    work: tuple[NDArray[np.int64], ...]
    if outputs is None:
        group = np.repeat(np.arange(len(packed.write_start) - 1), np.diff(packed.write_start))
        kernel, work = triton_jit.weighted_sum, (packed.read_start[group], packed.read_start[group + 1])
        programs = -(-len(packed.writes) // SUM_OUTPUTS)
        options = {"writes": len(packed.writes), "OUTPUTS": SUM_OUTPUTS}
    else:
        tiles = tiles_of(packed, outputs)
        kernel, work, programs = triton_jit.product, (tiles,), len(tiles)
        options = {"OUTPUTS": outputs, "READS": READS, "PRECISION": PRECISION}
    residual_row = None if packed.residual_rows is None else move(packed.residual_rows)
    rows = (*map(move, (*packed.reads.T, *packed.writes.T, packed.bias)), residual_row)
    rows += tuple(move(array.astype(np.int32)) for array in work)
    return _Lists(kernel, programs, move(packed.weights), rows, options)


def best_outputs(packed: Packed) -> int | None:
    """Rows of the output that a program of the matrix product computes; None: they are summed one by one.

    A product computes as many rows as its tile has, and reads once what they share; the sums of depthwise convolutions,
    batch norms and additions share nothing.
    """
    reads, writes = np.diff(packed.read_start), np.diff(packed.write_start)
    costs = {size: int((-(-writes // size) * reads).sum()) * (size + ROW_COST) for size in PRODUCT_OUTPUTS}
    best = min(costs, key=lambda size: costs[size])
    return best if costs[best] < packed.multiply_adds * (1 + ROW_COST) else None


def tiles_of(packed: Packed, outputs: int) -> NDArray[np.int64]:
    """Cut the groups into tiles of at most ``outputs`` writes, as even as possible.

    Returns:
        (tiles, 4): the first read, the end of the reads, the first write, the end of the writes.
    """
    counts = np.diff(packed.write_start)
    blocks = -(-counts // outputs)
    group = np.repeat(np.arange(len(counts)), blocks)
    block = np.arange(len(group)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    first, end = (packed.write_start[group] + at * counts[group] // blocks[group] for at in (block, block + 1))
    return np.stack([packed.read_start[group], packed.read_start[group + 1], first, end], axis=1)
