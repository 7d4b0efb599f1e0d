"""What oneDNN, with which PyTorch computes convolutions on CPUs, gets wrong in a training step.

The gradient towards the weights of a 1x1 convolution with a stride and few input channels, on images in channels_last
memory format, writes outside its memory: with fewer than 16 channels and several threads on processors with AVX-512,
fewer than 8 and any number of threads with AVX2 (PyTorch 2.14, oneDNN 3.12; oneDNN issue 6035). What lay there is lost,
or the process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from dcn_plugin.errors import SpecError

__all__ = ["FEW_CHANNELS", "check_channels_last", "narrow_strided_conv", "without_narrow_strides"]

FEW_CHANNELS = 16
"""With so many input channels every gradient is right."""


def narrow_strided_conv(model: nn.Module) -> str | None:
    """Name of a convolution whose gradient oneDNN gets wrong in channels_last; None: there is none."""
    return next(
        (
            name
            for name, conv in model.named_modules()
            if isinstance(conv, nn.Conv2d)
            and _is_narrow(conv.in_channels, conv.kernel_size, conv.stride, conv.padding, conv.groups)
        ),
        None,
    )


def check_channels_last(model: nn.Module, device: torch.device) -> None:
    """Refuse to train a network in channels_last memory format where oneDNN would write outside its memory.

    Args:
        model: any.
        device: where it is to train.

    Raises:
        SpecError: it has such a convolution, and the device is a CPU.
    """
    name = narrow_strided_conv(model) if device.type == "cpu" else None
    if name is not None:
        conv = model.get_submodule(name)
        raise SpecError(
            f"On a CPU the network cannot be trained in channels_last memory format: oneDNN (issue 6035) would write "
            f"outside its memory at {name!r}, a 1x1 convolution with a stride.",
            f"{conv.in_channels} input channels",
            f"at least {FEW_CHANNELS}",
            "train with channels_last=False",
        )


def without_narrow_strides(module: fx.GraphModule) -> None:
    """Rewrite, in a graph captured for the engine, such convolutions as ones without a stride on every other pixel."""
    for node in list(module.graph.nodes):
        if node.target is not torch.ops.aten.conv2d.default:
            continue
        x, weight, bias, stride, padding, dilation, groups = node.args
        value = getattr(module, weight.target) if weight.op == "get_attr" else weight.meta["val"]
        if not _is_narrow(value.shape[1] * groups, value.shape[2:], stride, padding, groups):
            continue
        with module.graph.inserting_before(node):
            for dim, step in zip((2, 3), stride, strict=True):
                x = module.graph.call_function(torch.ops.aten.slice.Tensor, (x, dim, 0, 2**63 - 1, step))
        node.args = (x, weight, bias, [1, 1], padding, dilation, groups)
    module.recompile()


def _is_narrow(channels: Any, kernel: Any, stride: Any, padding: Any, groups: Any) -> bool:
    return (
        channels < FEW_CHANNELS
        and groups == 1
        and tuple(kernel) == (1, 1)
        and max(stride) > 1
        and padding in ("same", "valid", (0, 0), [0, 0])
    )
