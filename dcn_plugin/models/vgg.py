"""The paper's VGG-19 for small images (CIFAR, MNIST), put together from timm's own VGG."""

from __future__ import annotations

import torch
from timm.layers import ClassifierHead
from timm.models.vgg import VGG, cfgs
from torch import nn

from dcn_plugin.models.parts import check_sizes, default_init

__all__ = ["cifar_vgg"]


def cifar_vgg(
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    width: int = 64,
    global_pool: str = "avg",
    act_layer: type[nn.Module] = nn.ReLU,
    norm_layer: type[nn.Module] | None = nn.BatchNorm2d,
    drop_rate: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> VGG:
    """Build a VGG-19 with batch norm whose head is one linear layer.

    The children are timm's, with nothing in ``pre_logits``. Convolutions have biases. Weights have PyTorch's
    default initialisation, as in the authors' code.

    Args:
        num_classes: number of logits; 0 leaves the classifier out.
        in_chans: colour channels of the images.
        width: channels of the first two convolutions, >= 4; the last eight have eight times as many.
        global_pool: as in timm, and so are ``act_layer``, ``norm_layer``, ``drop_rate``, ``device`` and ``dtype``.

    Returns:
        timm's VGG: (N, in_chans, H, W) -> logits (N, num_classes), for H and W of 16 and more.

    Raises:
        SpecError: a size is too small.

    Source: paper, appendix C.5; the authors' code (docs: concepts/authors-code).
    """
    check_sizes("VGG", num_classes=num_classes, in_chans=in_chans, width=width)
    layers = [v if isinstance(v, str) else v * width // 64 for v in cfgs["vgg19"]]
    # The head that timm builds is replaced; at this ratio it costs nothing.
    model = VGG(
        layers,
        num_classes=num_classes,
        in_chans=in_chans,
        mlp_ratio=1 / 4096,
        act_layer=act_layer,
        norm_layer=norm_layer,
        drop_rate=drop_rate,
        device=device,
        dtype=dtype,
    )
    # At 32x32 the fifth max-pool reads 2x2. At MNIST's 28x28 it would read 1x1, and the authors leave it out there:
    # rounding up, it passes a 1x1 map on as it is.
    model.features[-1] = nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True)
    model.pre_logits = nn.Identity()  # type: ignore[assignment]
    model.head = ClassifierHead(
        model.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, device=device, dtype=dtype
    )
    model.head_hidden_size = model.head.num_features
    default_init(model)
    return model
