"""Random sparse convolutions, and the dense computation that says what is right."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from dcn_plugin.engine.native import native_problem
from dcn_plugin.engine.row_layout import Geometry, number_rows

TOLERANCE = 1e-5
"""Of float32 results, relative to the largest sum of absolute terms; 250 terms of 6e-8 each give 1.5e-5 at worst."""

BACKENDS = [
    "reference",
    pytest.param("c", marks=pytest.mark.skipif(native_problem() is not None, reason=str(native_problem()))),
]

needs_c = pytest.mark.skipif(native_problem() is not None, reason=str(native_problem()))
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@dataclass(frozen=True)
class Layer:
    """One sparse convolution and what it reads; ``residual_live`` None: nothing is added."""

    weight: Tensor
    bias: Tensor
    in_live: Tensor
    kept: Tensor
    residual_live: Tensor | None
    geometry: Geometry
    relu: bool
    images: Tensor
    residual: Tensor | None

    @property
    def out_live(self) -> Tensor:
        return self.kept if self.residual_live is None else self.kept | self.residual_live

    @property
    def indexes(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What rows_conv wants: in_index, out_index, kept, residual_index."""
        residual = None if self.residual_live is None else number_rows(self.residual_live)
        return number_rows(self.in_live), number_rows(self.out_live), self.kept, residual

    def double(self) -> Layer:
        names = ("weight", "bias", "images", "residual")
        return replace(self, **{name: None if (v := getattr(self, name)) is None else v.double() for name in names})

    def dense(self, *, relu: bool | None = None) -> Tensor:
        """The plain masked convolution, of images."""
        made = F.conv2d(self.images * self.in_live, self.weight, self.bias, *self.geometry) * self.kept
        if self.residual is not None:
            made = made + self.residual * self.residual_live
        return made.relu() if (self.relu if relu is None else relu) else made

    def scale(self) -> float:
        """The largest sum of the absolute values of the terms: what rounding errors are relative to."""
        names = ("weight", "bias", "images", "residual")
        positive = replace(self, **{name: None if (v := getattr(self, name)) is None else v.abs() for name in names})
        return float(positive.dense().detach().abs().max())


def rows_of(images: Tensor, live: Tensor) -> Tensor:
    """(rows, N): the live neurons by position, then by channel."""
    return images.permute(2, 3, 1, 0)[live.permute(1, 2, 0)]


def images_of(rows: Tensor, live: Tensor) -> Tensor:
    """(N, C, H, W): the inverse of :func:`rows_of`."""
    images = rows.new_zeros(*live.permute(1, 2, 0).shape, rows.shape[1])
    images[live.permute(1, 2, 0)] = rows
    return images.permute(3, 2, 0, 1)


def arguments(layer: Layer, backend: str, *, relu: bool | None = None) -> tuple[Any, ...]:
    """All that rows_conv takes."""
    x = rows_of(layer.images, layer.in_live).contiguous()
    residual = None
    if layer.residual is not None and layer.residual_live is not None:
        residual = rows_of(layer.residual, layer.residual_live).contiguous()
    stride, padding, dilation, groups = layer.geometry
    relu = layer.relu if relu is None else relu
    rows = int(layer.out_live.sum())
    geometry = (list(stride), list(padding), list(dilation), groups)
    return (x, residual, layer.weight, layer.bias, *layer.indexes, *geometry, relu, rows, backend)


def make_layer(
    *,
    kernel: tuple[int, int] = (3, 3),
    size: tuple[int, int] = (5, 6),
    inputs: int = 3,
    outputs: int = 5,
    groups: int = 1,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    densities: tuple[float, float, float | None] = (0.5, 0.5, None),
    relu: bool = False,
    bias: bool = True,
    batch: int = 3,
    seed: int = 0,
) -> Layer:
    """A layer with random values and masks.

    Args:
        inputs: channels of a group; ``outputs`` likewise.
        densities: shares of the input, the output and the residual that are live; the last None: no residual.
    """
    generator = torch.Generator().manual_seed(seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def live(share: float, shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=generator) < share

    geometry = Geometry(stride, padding, dilation, groups)
    images, weight = values(batch, groups * inputs, *size), values(groups * outputs, inputs, *kernel)
    shape = F.conv2d(images[:1], weight, None, *geometry).shape[1:]
    residual_share = densities[2]
    return Layer(
        weight=weight,
        bias=values(len(weight)) if bias else torch.zeros(len(weight)),
        in_live=live(densities[0], images.shape[1:]),
        kept=live(densities[1], shape),
        residual_live=None if residual_share is None else live(residual_share, shape),
        geometry=geometry,
        relu=relu,
        images=images,
        residual=None if residual_share is None else values(batch, *shape),
    )


def reads_the_image(size: int, kernel: int, stride: int, padding: int, dilation: int) -> bool:
    """Whether, along one axis, some window has more than padding in it."""
    last = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride
    places = (o * stride - padding + tap * dilation for o in range(last + 1) for tap in range(kernel))
    return any(0 <= place < size for place in places)


@st.composite
def layers(draw: st.DrawFn, *, batches: tuple[int, int] = (1, 40)) -> Layer:
    """Any sparse convolution whose output has at least one position, and which reads more than padding."""
    kernel = draw(st.sampled_from([(1, 1), (3, 3), (5, 5), (7, 7), (1, 3), (3, 2), (5, 1)]))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    padding = (draw(st.integers(0, kernel[0])), draw(st.integers(0, kernel[1])))
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = (max(reach[0], 1) + draw(st.integers(0, 4)), max(reach[1], 1) + draw(st.integers(0, 4)))
    groups = draw(st.sampled_from([1, 1, 2, 3, 7]))
    inputs = draw(st.sampled_from([1, 1, 2, 3, 5] if groups == 1 else [1, 1, 3]))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    assume(all(map(reads_the_image, size, kernel, stride, padding, dilation)))
    share = st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0])
    return make_layer(
        kernel=kernel,
        size=size,
        inputs=inputs,
        # Up to 13: a thread works on six at a time.
        outputs=draw(st.integers(1, 13 if groups == 1 else 3)),
        groups=groups,
        stride=stride,
        padding=padding,
        dilation=dilation,
        densities=(draw(share), draw(share), draw(st.none() | share)),
        relu=draw(st.booleans()),
        bias=draw(st.booleans()),
        batch=draw(st.integers(*batches)),
        seed=draw(st.integers(0, 2**16)),
    )
