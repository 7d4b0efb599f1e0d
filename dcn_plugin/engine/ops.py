"""The engine's operators in torch.library: what torch.compile, torch.export and autograd see.

Their arguments are weights, masks and row numbers; what a backend derives from them (lists for the C kernel) is kept
beside, made at compaction or at the first call, and never saved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcn_plugin.engine import native, reference, triton_kernels
from dcn_plugin.engine.constant_cache import derived
from dcn_plugin.engine.packing import Packed, Windows, pack_forward, pack_input_grad, pool_windows
from dcn_plugin.engine.row_layout import Geometry, Window

__all__ = [
    "BACKENDS",
    "Backend",
    "cells_by_position",
    "conv_runner",
    "forget",
    "packed_conv",
    "pool_lists",
    "rows_conv",
    "rows_max_pool",
    "rows_to_dense",
    "to_rows",
]

Backend = Literal["reference", "c", "triton"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def forget(tensors: Iterable[Tensor | None]) -> None:
    """Drop what was made from these tensors: lists of rows, packed weights."""
    derived.forget(tensors)


@torch.library.custom_op("dcn_plugin::rows_conv", mutates_args=())
def rows_conv(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    kept: Tensor,
    residual_index: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    relu: bool,
    rows: int,
    backend: str,
) -> Tensor:
    """A convolution of the neurons that exist: ``relu(kept * conv(x) + residual)``.

    Args:
        x: (rows, N), one row for each live input neuron.
        residual: (rows, N) or None.
        weight: (O, I / groups, kh, kw), with batch norm folded in.
        bias: (O,).
        in_index: int32 (I, H, W), rows of ``x`` or -1.
        out_index: int32 (O, H', W'), numbers the rows of the result; -1 elsewhere.
        kept: bool (O, H', W'): the mask.
        residual_index: int32 (O, H', W'), rows of ``residual`` or -1.
        stride: of the convolution; ``padding``, ``dilation`` and ``groups`` too.
        relu: whether negative values become 0.
        rows: of the result.
        backend: "reference", "c" or "triton".

    Returns:
        (rows, N).
    """
    geometry = _geometry(stride, padding, dilation, groups)
    if backend == "reference":
        return reference.conv(
            x, residual, weight, bias, in_index, out_index, kept, residual_index, geometry, relu, rows
        )
    named = (weight, bias, in_index, out_index, kept, residual_index)
    run = conv_runner(*named, geometry, backend)
    out = x.new_empty(rows, x.shape[1])
    run(x.contiguous(), out, residual=None if residual is None else residual.contiguous(), relu=relu)
    return out


def conv_runner(
    weight: Tensor,
    bias: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    mask: Tensor,
    residual_index: Tensor | None,
    geometry: Geometry,
    backend: str,
) -> Callable[..., None]:
    """What :func:`rows_conv` runs; it takes x and out, contiguous (rows, N), then residual= and relu=."""
    named = (weight, bias, in_index, out_index, mask, residual_index)
    run: Callable[..., None] = derived(
        (backend, geometry), named, lambda: _RUNNERS[backend](packed_conv(*named, geometry))
    )
    return run


def packed_conv(
    weight: Tensor,
    bias: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    mask: Tensor,
    residual_index: Tensor | None,
    geometry: Geometry,
) -> Packed:
    """The lists of :func:`rows_conv`, made once for the same tensors."""
    named = (weight, bias, in_index, out_index, mask, residual_index)
    packed: Packed = derived(("conv", geometry), named, lambda: pack_forward(*named, geometry))
    return packed


@rows_conv.register_fake
def _(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(args[-2], x.shape[1])


@torch.library.custom_op("dcn_plugin::rows_conv_input_grad", mutates_args=())
def rows_conv_input_grad(
    grad: Tensor,
    weight: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    kept: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    rows: int,
    backend: str,
) -> Tensor:
    """The gradient of ``kept * conv(x)`` with respect to x, as rows; arguments as in :func:`rows_conv`."""
    geometry = _geometry(stride, padding, dilation, groups)
    if backend == "reference":
        return reference.conv_input_grad(grad, weight, in_index, out_index, kept, geometry, rows)
    named = (weight, in_index, out_index, kept)
    packed, run = derived(("grad", backend, geometry), named, lambda: _packed_grad(backend, *named, geometry))
    # Rows that the forward pass does not read have no gradient.
    make = grad.new_empty if len(packed.writes) == rows else grad.new_zeros
    out = make(rows, grad.shape[1])
    run(grad.contiguous(), out)
    return out


@rows_conv_input_grad.register_fake
def _(grad: Tensor, *args: Any) -> Tensor:
    return grad.new_empty(args[-2], grad.shape[1])


@torch.library.custom_op("dcn_plugin::rows_residual_grad", mutates_args=())
def rows_residual_grad(grad: Tensor, residual_index: Tensor, out_index: Tensor, rows: int) -> Tensor:
    """The gradient of :func:`rows_conv` with respect to its residual, as rows; arguments as there."""
    # An operator of its own: torch.compile must not look into what is derived and kept.
    named = (residual_index, out_index)
    readers: Tensor = derived(("residual", rows), named, lambda: _readers(residual_index, out_index, rows))
    return torch.cat([grad, grad.new_zeros(1, grad.shape[1])]).index_select(0, readers)


@rows_residual_grad.register_fake
def _(grad: Tensor, residual_index: Tensor, out_index: Tensor, rows: int) -> Tensor:
    return grad.new_empty(rows, grad.shape[1])


def _readers(index: Tensor, out_index: Tensor, rows: int) -> Tensor:
    """For each row that ``index`` names the row of the output that it was added to; one past the end: none."""
    readers = torch.full((rows,), int(out_index.max()) + 1, dtype=torch.int64, device=index.device)
    read = (index >= 0) & (out_index >= 0)
    readers[index[read].long()] = out_index[read].long()
    return readers


@torch.library.custom_op("dcn_plugin::images_to_rows", mutates_args=())
def to_rows(images: Tensor, index: Tensor, rows: int, backend: str) -> Tensor:
    """Images (N, C, H, W) -> (rows, N), the neurons that ``index`` numbers.

    Rows that ``index`` does not name are 0: a mask on rows leaves them behind, and they have no gradient.
    """
    if backend == "triton":
        cells, places = derived(("places",), (index,), lambda: _places(index))
        values = images.flatten(1).index_select(1, cells).t()
        return images.new_zeros(rows, len(images)).index_copy_(0, places, values)
    if backend == "reference":
        return reference.to_rows(images, index, rows)
    out = images.new_empty(rows, len(images))
    cells, named = cells_by_position(index)
    native.to_rows(images, cells, out, named)
    return out


@to_rows.register_fake
def _(images: Tensor, index: Tensor, rows: int, backend: str) -> Tensor:
    return images.new_empty(rows, images.shape[0])


@torch.library.custom_op("dcn_plugin::rows_to_images", mutates_args=())
def rows_to_dense(x: Tensor, index: Tensor, backend: str) -> Tensor:
    """Rows (rows, N) -> images (N, C, H, W) in channels_last memory format, zero where no neuron exists."""
    if backend != "c":
        return reference.to_dense(x, index).contiguous(memory_format=torch.channels_last)
    cells, _ = cells_by_position(index)
    return native.to_dense(x.contiguous(), cells, (index.shape[0], index.shape[1], index.shape[2]))


@rows_to_dense.register_fake
def _(x: Tensor, index: Tensor, backend: str) -> Tensor:
    shape = (x.shape[1], *index.shape)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.custom_op("dcn_plugin::rows_max_pool", mutates_args=())
def rows_max_pool(
    x: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil: bool,
    rows: int,
    backend: str,
) -> Tensor:
    """A max-pool of rows, in which the zeros of dead neurons count.

    Args:
        x: (rows, N).
        in_index: int32 (C, H, W), rows of ``x`` or -1.
        out_index: int32 (C, H', W'), numbers the rows of the result; -1 elsewhere.
        kernel: sides of the window; ``stride``, ``padding``, ``dilation`` and ``ceil`` as PyTorch's.
        rows: of the result.
        backend: "reference", "c" or "triton".

    Returns:
        (rows, N).
    """
    window = _window(kernel, stride, padding, dilation, ceil)
    if backend != "c":
        return reference.max_pool(x, in_index, out_index, window, rows)
    out = x.new_empty(rows, x.shape[1])
    native.run_maxima(pool_lists(in_index, out_index, window), x.contiguous(), out)
    return out


def pool_lists(in_index: Tensor, out_index: Tensor, window: Window) -> Windows:
    """The lists of :func:`rows_max_pool`, made once for the same tensors."""
    named = (in_index, out_index)
    windows: Windows = derived(("pool", window), named, lambda: pool_windows(*named, window))
    return windows


@rows_max_pool.register_fake
def _(x: Tensor, *args: Any) -> Tensor:
    return x.new_empty(args[-2], x.shape[1])


@torch.library.custom_op("dcn_plugin::rows_max_pool_grad", mutates_args=())
def rows_max_pool_grad(
    grad: Tensor,
    x: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil: bool,
) -> Tensor:
    """The gradient of :func:`rows_max_pool` with respect to x; on images with every backend."""
    return reference.max_pool_grad(grad, x, in_index, out_index, _window(kernel, stride, padding, dilation, ceil))


@rows_max_pool_grad.register_fake
def _(grad: Tensor, x: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(x)


def _pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, in_index, out_index, *ctx.window, _, _ = inputs
    ctx.save_for_backward(x, in_index, out_index)


def _pool_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return (rows_max_pool_grad(grad, *ctx.saved_tensors, *ctx.window), *[None] * 9)


rows_max_pool.register_autograd(_pool_backward, setup_context=_pool_setup)


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, residual, weight, _, in_index, out_index, mask, residual_index, *geometry, relu, _, backend = inputs
    ctx.save_for_backward(weight, in_index, out_index, mask, residual_index, output if relu else None)
    ctx.plan = (*geometry, len(x), backend)
    ctx.residual_rows = None if residual is None else len(residual)


def _conv_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, in_index, out_index, mask, residual_index, output = ctx.saved_tensors
    if output is not None:
        grad = grad * (output > 0)
    towards_x = (
        rows_conv_input_grad(grad, weight, in_index, out_index, mask, *ctx.plan) if ctx.needs_input_grad[0] else None
    )
    towards_residual = None
    if ctx.residual_rows is not None and ctx.needs_input_grad[1]:
        towards_residual = rows_residual_grad(grad, residual_index, out_index, ctx.residual_rows)
    return (towards_x, towards_residual, *[None] * 13)


rows_conv.register_autograd(_conv_backward, setup_context=_conv_setup)


def _to_rows_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.backend = inputs[-1]


def _to_rows_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return rows_to_dense(grad, *ctx.saved_tensors, ctx.backend), None, None, None


def _to_dense_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, index, backend = inputs
    ctx.save_for_backward(index)
    ctx.plan = (len(x), backend)


def _to_dense_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return to_rows(grad, *ctx.saved_tensors, *ctx.plan), None, None


to_rows.register_autograd(_to_rows_backward, setup_context=_to_rows_setup)
rows_to_dense.register_autograd(_to_dense_backward, setup_context=_to_dense_setup)


def _window(kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool) -> Window:
    return Window(_pair(kernel), _pair(stride), _pair(padding), _pair(dilation), ceil)


def _pair(values: list[int]) -> tuple[int, int]:
    return values[0], values[1]


def _geometry(stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Geometry:
    return Geometry(_pair(stride), _pair(padding), _pair(dilation), groups)


def _places(index: Tensor) -> tuple[Tensor, Tensor]:
    """The cells that have a row, and their rows. Finding them makes the CPU wait for the GPU, so it is done once."""
    flat = index.flatten().long()
    cells = (flat >= 0).nonzero().squeeze(1)
    return cells, flat[cells]


def cells_by_position(index: Tensor) -> tuple[NDArray[np.int32], int]:
    """Row numbers (C, H, W) as the C kernel takes them, by position, then by channel; and how many are not -1."""

    def make() -> tuple[NDArray[np.int32], int]:
        return index.permute(1, 2, 0).contiguous().numpy().ravel(), int((index >= 0).sum())

    cells: tuple[NDArray[np.int32], int] = derived(("cells",), (index,), make)
    return cells


_RUNNERS: dict[str, Callable[[Packed], Callable[..., None]]] = {
    "c": native.Gemm,
    "triton": lambda packed: functools.partial(triton_kernels.run_gemm, packed),
}
"""Backend -> what makes of lists a call that runs them."""


def _packed_grad(
    backend: str, weight: Tensor, in_index: Tensor, out_index: Tensor, mask: Tensor, geometry: Geometry
) -> tuple[Packed, Callable[..., None]]:
    packed = pack_input_grad(weight, in_index, out_index, mask, geometry)
    return packed, _RUNNERS[backend](packed)
