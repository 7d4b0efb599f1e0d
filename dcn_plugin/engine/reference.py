"""The reference backend: rows are expanded to images, and PyTorch does the rest. Slow; the oracle of the others."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from dcn_plugin.engine.row_layout import Geometry, Window, expand, gather

__all__ = ["conv", "conv_input_grad", "max_pool", "max_pool_grad", "to_dense", "to_rows"]


def conv(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    in_index: Tensor,
    out_index: Tensor,
    mask: Tensor,
    residual_index: Tensor | None,
    geometry: Geometry,
    relu: bool,
    rows: int,
) -> Tensor:
    """Convolution, mask, sum and ReLU, as rows; see :func:`dcn_plugin.engine.ops.rows_conv`."""
    images = F.conv2d(expand(x, in_index), weight, bias, *geometry) * mask
    if residual is not None and residual_index is not None:
        images = images + expand(residual, residual_index)
    return gather(images.relu() if relu else images, out_index, rows)


def conv_input_grad(
    grad: Tensor, weight: Tensor, in_index: Tensor, out_index: Tensor, mask: Tensor, geometry: Geometry, rows: int
) -> Tensor:
    """The gradient of ``mask * conv(x)`` with respect to the ``rows`` rows of x."""
    dense = expand(grad, out_index) * mask
    images = conv2d_input((len(dense), *in_index.shape), weight, dense, *geometry)
    return _gather_some(images, in_index, rows)


def max_pool(x: Tensor, in_index: Tensor, out_index: Tensor, window: Window, rows: int) -> Tensor:
    """Max-pool; a neuron that does not exist is 0."""
    return gather(F.max_pool2d(expand(x, in_index), *window), out_index, rows)


def max_pool_grad(grad: Tensor, x: Tensor, in_index: Tensor, out_index: Tensor, window: Window) -> Tensor:
    """The gradient of a max-pool with respect to the rows of x: of equal values the first gets it, as in PyTorch."""
    images = expand(x, in_index)
    _, places = F.max_pool2d(images, *window, return_indices=True)
    towards = images.new_zeros(images.shape).flatten(2)
    towards.scatter_add_(2, places.flatten(2), expand(grad, out_index).flatten(2))
    return _gather_some(towards.view(images.shape), in_index, len(x))


def to_rows(images: Tensor, index: Tensor, rows: int) -> Tensor:
    """Images (N, C, H, W) -> (rows, N); rows that ``index`` does not name are 0."""
    return _gather_some(images, index, rows)


def to_dense(x: Tensor, index: Tensor) -> Tensor:
    """Rows (rows, N) -> images (N, C, H, W)."""
    return expand(x, index).contiguous()


def _gather_some(images: Tensor, index: Tensor, rows: int) -> Tensor:
    """As :func:`gather`, but rows that ``index`` does not name are 0."""
    flat, live = images.permute(1, 2, 3, 0).reshape(index.numel(), len(images)), index.flatten() >= 0
    result = images.new_zeros(rows, len(images))
    result[index.flatten()[live].long()] = flat[live]
    return result
