"""Activations as rows: one row for each neuron that exists, holding its values for all images of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Geometry", "Window", "cells_of", "expand", "gather", "number_rows", "readable"]


class Geometry(NamedTuple):
    """How a convolution moves over its input: what :func:`torch.nn.functional.conv2d` takes."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


class Window(NamedTuple):
    """The window of a max-pool: what :func:`torch.nn.functional.max_pool2d` takes."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil: bool = False


def readable(live: Tensor, kernel: Sequence[int], geometry: Geometry) -> Tensor:
    """How many live inputs the window of each output position has, padding left out.

    Args:
        live: bool (C, H, W) of the input.
        kernel: height and width of the window.
        geometry: of the convolution.
    Returns:
        float64 (groups, H', W'), whole numbers.
    """
    groups = geometry.groups
    # All channels of a group have the same window, so that they can be counted before.
    counts = live.view(groups, -1, *live.shape[1:]).sum(1, dtype=torch.float32)
    return F.conv2d(counts[None], counts.new_ones(groups, 1, *kernel), None, *geometry)[0].double()


def number_rows(live: Tensor) -> Tensor:
    """Give every live neuron a row: by position, then by channel, so that a window's rows lie together.

    Args:
        live: bool (C, H, W).
    Returns:
        int32 (C, H, W): the row of each neuron, -1 where it does not exist.
    """
    by_position = live.permute(1, 2, 0).flatten()
    rows = torch.where(by_position, by_position.cumsum(0) - 1, -1)
    channels, height, width = live.shape
    return rows.to(torch.int32).view(height, width, channels).permute(2, 0, 1).contiguous()


def cells_of(index: Tensor, rows: int) -> Tensor:
    """The inverse of a row numbering.

    Args:
        index: int32 (C, H, W), rows or -1; every row of 0 .. rows - 1 occurs once.
    Returns:
        int64 (rows,): the flat number of each row's cell in (C, H, W).
    """
    flat = index.flatten().long()
    cells = torch.empty(rows, dtype=torch.int64, device=index.device)
    numbers = torch.arange(len(flat), device=index.device)
    live = flat >= 0
    cells[flat[live]] = numbers[live]
    return cells


def expand(x: Tensor, index: Tensor) -> Tensor:
    """Rows -> images, zero where a neuron does not exist.

    Args:
        x: (rows, N).
        index: int32 (C, H, W), rows of ``x`` or -1.
    Returns:
        (N, C, H, W), a new tensor.
    """
    padded = torch.cat([x, x.new_zeros(1, x.shape[1])])
    flat = index.flatten().long()
    cells = padded.index_select(0, torch.where(flat < 0, len(x), flat))
    return cells.view(*index.shape, x.shape[1]).permute(3, 0, 1, 2)


def gather(images: Tensor, index: Tensor, rows: int) -> Tensor:
    """Images -> rows: the inverse of :func:`expand` on the neurons that exist.

    Args:
        images: (N, C, H, W).
        index: int32 (C, H, W), a numbering of ``rows`` rows, or -1.
    Returns:
        (rows, N), contiguous.
    """
    flat = images.permute(1, 2, 3, 0).reshape(index.numel(), len(images))
    return flat.index_select(0, cells_of(index, rows))
