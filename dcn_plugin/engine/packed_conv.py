"""Convolutions on images whose weights are laid out for oneDNN once, where PyTorch lays them out at every call.

For a batch of one image that takes half of the time of a late layer: it has many weights and few positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input

from dcn_plugin.engine.constant_cache import derived
from dcn_plugin.engine.row_layout import Geometry
from dcn_plugin.engine.steps import Conv

__all__ = ["IMAGES_CONV", "can_pack", "images_conv", "scale_of"]


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch has the operators that torch.compile calls on CPUs."""
    there = hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    return device.type == "cpu" and dtype == torch.float32 and torch.backends.mkldnn.is_available() and there


@torch.library.custom_op("dcn_plugin::images_conv", mutates_args=())
def images_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """``conv2d``, for weights that nobody writes to: they are laid out at the first call, as that batch likes best.

    Args:
        x: float32 (N, I, H, W) on the CPU; so are the others.
        weight: (O, I / groups, kh, kw).
        bias: (O,) or None.
        stride: of the convolution; ``padding``, ``dilation`` and ``groups`` too.

    Returns:
        (N, O, H', W') in channels_last memory format.
    """
    plain = (stride, padding, dilation, groups)
    # With one input channel the packed weights gave other numbers than F.conv2d at a stride of (1, 2) on 4x4 images
    # (torch 2.14.1), perhaps because one channel lies in memory alike in every format.
    if not len(x) or x.shape[1] == 1:
        return _channels_last(F.conv2d(x, weight, bias, *plain))
    x = _channels_last(x)
    geometry = (padding, stride, dilation, groups)
    kind = ("oneDNN", *map(tuple, plain[:3]), groups)
    laid_out = derived(
        kind, (weight,), lambda: torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
    )
    return _channels_last(torch.ops.mkldnn._convolution_pointwise(x, laid_out, bias, *geometry, "none", [], ""))


@images_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    return _channels_last(F.conv2d(x, weight, bias, *geometry))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *ctx.geometry = inputs
    ctx.save_for_backward(weight)
    ctx.shape = x.shape


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (weight,) = ctx.saved_tensors
    return (conv2d_input(ctx.shape, weight, grad, *ctx.geometry), *[None] * 6)


images_conv.register_autograd(_backward, setup_context=_setup)

IMAGES_CONV = torch.ops.dcn_plugin.images_conv.default
"""What stands in a graph: takes the arguments of ``aten.conv2d``."""


def scale_of(conv: Conv) -> tuple[Tensor, Tensor] | None:
    """Scale and shift, mask included, of a convolution that does nothing else to its channels; None: it does more.

    The batch norm of a pre-activation network is one. Run as a convolution it takes 50 times as long.

    Returns:
        Weight and bias, (1, C, H, W), or (1, C, 1, 1) without a mask.
    """
    channels = len(conv.weight)
    if conv.weight.shape[1:] != (1, 1, 1) or conv.geometry != Geometry(groups=channels):
        return None
    weight, bias = (values.view(1, channels, 1, 1) for values in (conv.weight, conv.bias))
    if bool(conv.kept.all()):
        return weight, bias
    mask = conv.kept.to(weight.device, weight.dtype)
    return _channels_last(weight * mask), _channels_last(bias * mask)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
