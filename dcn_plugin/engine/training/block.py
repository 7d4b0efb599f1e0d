"""A convolution, the norm behind it, its mask, a sum and a ReLU, on rows, with every gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from dcn_plugin.engine.row_layout import Geometry, expand, gather
from dcn_plugin.engine.training import kernels
from dcn_plugin.engine.training.lists import Items, computed_neurons, list_items, pack_weight, unpack_weight
from dcn_plugin.errors import CompactError

__all__ = ["Norm", "NormKind", "RowsBlock"]

NormKind = Literal["none", "running", "batch", "live"]
"""What a batch norm takes its statistics from: there is no norm, its running statistics, the batch's over all neurons
(as in the paper's code), the batch's over the neurons that the mask keeps."""


@dataclass(frozen=True)
class Norm:
    """How a batch norm computes.

    Args:
        kind: see :data:`NormKind`.
        momentum: share of the batch in the new running statistics.
        eps: added to the variance.
    """

    kind: NormKind = "none"
    momentum: float = 0.1
    eps: float = 1e-5


class RowsBlock(nn.Module):
    """``relu(mask * norm(conv(x)) + residual)`` of the neurons that exist.

    What neurons there are follows from the index arguments; weights come with each call, so that they can be trained.

    Args:
        in_index: int32 (I, H, W), rows of the input or -1.
        out_index: int32 (O, H', W'), numbers the rows of the result; -1 elsewhere.
        kept: bool (O, H', W'): the mask.
        residual_index: int32 (O, H', W'), rows of the residual or -1; None: nothing is added.
        weight_shape: (O, I / groups, kh, kw).
        geometry: of the convolution.
        norm: behind the convolution.
        relu: whether a ReLU ends it.
        backend: "c", or "reference", which expands the rows and lets PyTorch do the rest.
    """

    def __init__(
        self,
        in_index: Tensor,
        out_index: Tensor,
        kept: Tensor,
        residual_index: Tensor | None,
        weight_shape: tuple[int, int, int, int],
        geometry: Geometry,
        norm: Norm,
        *,
        relu: bool,
        backend: str,
    ) -> None:
        super().__init__()
        self.in_index, self.out_index, self.kept, self.residual_index = in_index, out_index, kept, residual_index
        self.geometry, self.norm, self.relu, self.backend = geometry, norm, relu, backend
        self.count = int((out_index >= 0).sum())
        computed = computed_neurons(kept, out_index >= 0, all_neurons=norm.kind == "batch")
        self.items = (
            list_items(in_index, out_index, kept, computed, residual_index, weight_shape, geometry)
            if backend == "c"
            else None
        )

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
    ) -> Tensor:
        """Compute the rows, and update the running statistics where the norm is in training.

        Args:
            x: (rows, N).
            residual: (rows, N) or None.
            weight: (O, I / groups, kh, kw).
            bias: (O,) or None.
            gamma: (O,) or None, the norm's weight; ``beta``, its bias, likewise.
            beta: (O,) or None.
            running_mean: (O,) or None; ``running_var`` too.
            running_var: (O,) or None.

        Returns:
            (rows, N).
        """
        if self.items is None or not x.shape[1]:
            return _reference(self, x, residual, weight, bias, gamma, beta, running_mean, running_var)
        out: Tensor = _Rows.apply(self, x, residual, weight, bias, gamma, beta, running_mean, running_var)
        return out


def _reference(
    block: RowsBlock,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> Tensor:
    """The block by PyTorch's operations on images: slow, any dtype, differentiable twice; the C kernel's oracle."""
    norm = block.norm
    images = F.conv2d(expand(x, block.in_index), weight, bias, *block.geometry)
    if norm.kind == "live":
        kept = block.kept & (block.out_index >= 0)
        images = _live_norm(images, kept, norm, gamma, beta, running_mean, running_var)
    elif norm.kind != "none":
        training = norm.kind == "batch"
        images = F.batch_norm(images, running_mean, running_var, gamma, beta, training, norm.momentum, norm.eps)
    images = images * block.kept
    if residual is not None and block.residual_index is not None:
        images = images + expand(residual, block.residual_index)
    return gather(images.relu() if block.relu else images, block.out_index, block.count)


def _live_norm(
    images: Tensor,
    kept: Tensor,
    norm: Norm,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> Tensor:
    """A batch norm whose statistics are over the neurons that the mask keeps: images (N, C, H, W), kept (C, H, W)."""
    counts = kept.sum((1, 2)) * len(images)
    count = counts.clamp(min=1).to(images.dtype)
    mean = (images * kept).sum((0, 2, 3)) / count
    centred = (images - mean[:, None, None]) * kept
    var = centred.square().sum((0, 2, 3)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = var * count / (count - 1).clamp(min=1)
            share = torch.where(counts > 0, norm.momentum, 0.0)
            running_mean.lerp_(mean, share.to(running_mean.dtype))
            running_var.lerp_(unbiased, share.to(running_var.dtype))
    images = centred * torch.rsqrt(var + norm.eps)[:, None, None]
    if gamma is not None:
        images = images * gamma[:, None, None]
    return images if beta is None else images + beta[:, None, None]


@dataclass(frozen=True, eq=False)
class _Statistics:
    """What a norm subtracts from y and divides it by; y is without the convolution's bias.

    Args:
        mean: float64 (O,).
        scale: float64 (O,): 1 / sqrt(variance + eps).
        count: values of each channel, float64 (O,); None: the statistics do not depend on y.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    count: NDArray[np.float64] | None


class _Rows(torch.autograd.Function):
    """The C kernel's forward pass and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        block: RowsBlock,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        gamma: Tensor | None,
        beta: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
    ) -> Tensor:
        items, norm, groups = block.items, block.norm, block.geometry.groups
        assert items is not None
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        weights = pack_weight(weight, groups, items.width)
        y, sums = kernels.forward(items, x, weights, groups, sums=norm.kind in ("batch", "live"))
        offset = _numbers(bias, len(weight), 0)
        if sums is not None:
            statistics = _batch_statistics(items, sums, x.shape[1], norm)
            _update(running_mean, running_var, statistics, offset, norm)
        elif norm.kind == "running":
            variance = _numbers(running_var, len(weight), 1)
            statistics = _Statistics(
                _numbers(running_mean, len(weight), 0) - offset, (variance + norm.eps) ** -0.5, None
            )
        else:
            statistics = _Statistics(-offset, np.ones(len(weight)), None)
        scale = statistics.scale * _numbers(gamma, len(weight), 1)
        shift = _numbers(beta, len(weight), 0) - scale * statistics.mean
        of_y = statistics.count is not None or (gamma is not None and gamma.requires_grad)
        numbers = np.stack([scale, shift]).astype(np.float32)
        out = kernels.finish(items, y, residual, numbers, relu=block.relu, in_place=not of_y)
        ctx.save_for_backward(x, weight, gamma, y if of_y else None, out if block.relu else None)
        ctx.block, ctx.statistics = block, statistics
        ctx.residual_rows = None if residual is None else len(residual)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise CompactError(
                "The training engine has no gradient of a gradient (create_graph=True).",
                fix="use the defective model itself for that step",
            )
        x, weight, gamma, y, out = ctx.saved_tensors
        block, statistics = ctx.block, ctx.statistics
        items, groups = block.items, block.geometry.groups
        _, towards_x, towards_residual, towards_weight, towards_bias, towards_gamma, towards_beta, *_ = (
            ctx.needs_input_grad
        )
        grad, residual_grad = grad.contiguous(), None
        sums = products = np.zeros_like(statistics.scale)
        if statistics.count is not None or towards_residual or towards_bias or towards_gamma or towards_beta:
            mean, rows = statistics.mean.astype(np.float32), ctx.residual_rows if towards_residual else None
            residual_grad, (sums, products) = kernels.prepare(items, grad, out, y, mean, residual_rows=rows)
        scale = statistics.scale * _numbers(gamma, len(weight), 1)
        of_y = constant = np.zeros_like(scale)
        if statistics.count is not None:
            count = np.maximum(statistics.count, 1)
            of_y = -scale * statistics.scale**2 * products / count
            constant = -scale * sums / count - of_y * statistics.mean
        # Packed again: all layers' weights twice would take more memory than this takes time.
        x_grad, weight_grad = kernels.backward(
            items,
            x,
            pack_weight(weight, groups, items.width),
            y if statistics.count is not None else None,
            grad,
            out,
            np.stack([scale, of_y, constant]).astype(np.float32),
            groups,
            towards_x=towards_x,
            towards_weights=towards_weight,
        )
        # A constant that is added before the batch's mean is subtracted changes nothing.
        bias_grad = np.zeros_like(sums) if statistics.count is not None else scale * sums
        return (
            None,
            x_grad,
            residual_grad,
            None if weight_grad is None else unpack_weight(weight_grad, weight, groups),
            _tensor(bias_grad) if towards_bias else None,
            _tensor(statistics.scale * products) if towards_gamma else None,
            _tensor(sums) if towards_beta else None,
            None,
            None,
        )


def _batch_statistics(items: Items, sums: NDArray[np.float64], batch: int, norm: Norm) -> _Statistics:
    """Mean and variance of each channel from the sums of its chunks, each taken around a value of its own."""
    shift, first, second = sums
    counts = items.counts * float(batch)
    count = counts.sum(axis=0)
    if norm.kind == "batch" and count.max(initial=0) == 1:
        raise ValueError("Expected more than 1 value per channel when training: a batch norm of one value is no norm.")
    mean = (counts * shift + first).sum(axis=0) / np.maximum(count, 1)
    off = mean - shift
    squares = (second - 2 * off * first + counts * off**2).sum(axis=0)
    variance = np.maximum(squares, 0) / np.maximum(count, 1)
    return _Statistics(mean, (variance + norm.eps) ** -0.5, count)


def _update(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    statistics: _Statistics,
    offset: NDArray[np.float64],
    norm: Norm,
) -> None:
    """What the batch norm does to its running statistics; a channel without a neuron keeps them."""
    if running_mean is None or running_var is None:
        return
    count = statistics.count
    assert count is not None
    variance = (statistics.scale**-2 - norm.eps) * count / np.maximum(count - 1, 1)
    share = _tensor(np.where(count > 0, norm.momentum, 0.0))
    running_mean.lerp_(_tensor(statistics.mean + offset), share)
    running_var.lerp_(_tensor(variance), share)


def _numbers(parameter: Tensor | None, count: int, absent: float) -> NDArray[np.float64]:
    """A parameter of the channels in float64; ``absent`` where the layer has none."""
    if parameter is None:
        return np.full(count, float(absent))
    numbers: NDArray[np.float64] = parameter.detach().double().numpy()
    return numbers


def _tensor(numbers: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(numbers.astype(np.float32))
