"""The kernels of the Triton backend. Importing this file imports Triton; ``triton_kernels`` does so at the first run.

Rows are (rows, N), contiguous. Each program computes a tile: some rows of the output for some images, which lie side by
side, so that neighbouring threads read neighbouring values. Programs that follow one another have neighbouring
positions for the same images: they read nearly the same rows, which are in the cache by then.
"""

# Kernels are written in Triton's language, which has no types for mypy.
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["product", "weighted_sum"]


@triton.jit
def product(
    x,
    weights,
    residual,
    out,
    read_row,
    read_begin,
    write_row,
    write_place,
    bias,
    residual_row,
    tiles,
    batch,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    OUTPUTS: tl.constexpr,
    READS: tl.constexpr,
    IMAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A matrix product for each tile: its weights are gathered from the shared ones, its inputs from the rows of x.

    ``tiles`` holds for each program its first read, the end of its reads, its first write and the end of its writes;
    there are at most OUTPUTS of them.
    """
    tile = tiles + 4 * tl.program_id(0)
    read, read_end = tl.load(tile), tl.load(tile + 1)
    write = tl.load(tile + 2) + tl.arange(0, OUTPUTS)
    written = write < tl.load(tile + 3)
    image = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    inside = (image < batch)[None, :]
    place = tl.load(write_place + write, mask=written, other=0)
    total = tl.zeros((OUTPUTS, IMAGES), tl.float32)
    for first in range(read, read_end, READS):
        at = first + tl.arange(0, READS)
        real = at < read_end
        # In 64 bits: rows times images go beyond 2**31.
        source = tl.load(read_row + at, mask=real, other=0).to(tl.int64)
        begin = tl.load(read_begin + at, mask=real, other=0)
        factor = tl.load(weights + place[:, None] + begin[None, :], mask=written[:, None] & real[None, :], other=0.0)
        value = tl.load(x + source[:, None] * batch + image[None, :], mask=real[:, None] & inside, other=0.0)
        total = tl.dot(factor, value, total, input_precision=PRECISION)
    _finish(total, residual, out, write_row, bias, residual_row, write, written, image, inside, batch, RESIDUAL, RELU)


@triton.jit
def weighted_sum(
    x,
    weights,
    residual,
    out,
    read_row,
    read_begin,
    write_row,
    write_place,
    bias,
    residual_row,
    write_read,
    write_read_end,
    writes,
    batch,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
    OUTPUTS: tl.constexpr,
    IMAGES: tl.constexpr,
):
    """Rows that share no reads worth a matrix product: each output has a list of reads of its own.

    ``write_read`` and ``write_read_end`` hold for each of the ``writes`` its first read and the end of its reads.
    """
    write = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    written = write < writes
    image = tl.program_id(1) * IMAGES + tl.arange(0, IMAGES)
    inside = (image < batch)[None, :]
    place = tl.load(write_place + write, mask=written, other=0)
    read = tl.load(write_read + write, mask=written, other=0)
    reads = tl.load(write_read_end + write, mask=written, other=0) - read
    total = tl.zeros((OUTPUTS, IMAGES), tl.float32)
    for step in range(0, tl.max(reads)):
        real = step < reads
        source = tl.load(read_row + read + step, mask=real, other=0).to(tl.int64)
        begin = tl.load(read_begin + read + step, mask=real, other=0)
        factor = tl.load(weights + begin + place, mask=real, other=0.0)
        value = tl.load(x + source[:, None] * batch + image[None, :], mask=real[:, None] & inside, other=0.0)
        total += factor[:, None] * value
    _finish(total, residual, out, write_row, bias, residual_row, write, written, image, inside, batch, RESIDUAL, RELU)


@triton.jit
def _finish(
    total,
    residual,
    out,
    write_row,
    bias,
    residual_row,
    write,
    written,
    image,
    inside,
    batch,
    RESIDUAL: tl.constexpr,
    RELU: tl.constexpr,
):
    """Add the bias and the residual, apply ReLU, and store a tile."""
    total += tl.load(bias + write, mask=written, other=0.0)[:, None]
    if RESIDUAL:
        added = tl.load(residual_row + write, mask=written, other=-1).to(tl.int64)
        there = (added >= 0)[:, None] & inside
        total += tl.load(residual + added[:, None] * batch + image[None, :], mask=there, other=0.0)
    if RELU:
        total = tl.where(total < 0.0, 0.0, total)  # NaN stays NaN, as in PyTorch
    row = tl.load(write_row + write, mask=written, other=0).to(tl.int64)
    tl.store(out + row[:, None] * batch + image[None, :], total, mask=written[:, None] & inside)
