"""The paper's DenseNet for small images (CIFAR, MNIST), put together from timm's own DenseNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.models.densenet import DenseNet
from torch import nn

from dcn_plugin.errors import SpecError
from dcn_plugin.models.parts import check_sizes, default_init

__all__ = ["cifar_densenet"]


def cifar_densenet(
    layers: Sequence[int] = (6, 12, 24, 16),
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    width: int = 64,
    global_pool: str = "avg",
    act_layer: str = "relu",
    norm_layer: str = "batchnorm2d",
    drop_rate: float = 0.0,
    proj_drop_rate: float = 0.0,
    memory_efficient: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> DenseNet:
    """Build a DenseNet whose stem is a bare 3x3 stride-1 convolution: no norm, no activation, no pooling.

    The children are timm's, but for ``features.norm0`` and ``features.pool0``. Weights have PyTorch's default
    initialisation, as in the authors' code.

    Args:
        layers: number of dense layers in each dense block, all >= 1.
        num_classes: number of logits; 0 leaves the classifier out.
        in_chans: colour channels of the images.
        width: channels of the stem, even and >= 4; the growth rate is half of it (the paper's: 64 and 32).
        global_pool: as in timm, and so are ``act_layer``, ``norm_layer``, ``drop_rate``, ``proj_drop_rate``,
            ``memory_efficient``, ``device`` and ``dtype``.

    Returns:
        timm's DenseNet: (N, in_chans, H, W) -> logits (N, num_classes), for H and W of 8 and more.

    Raises:
        SpecError: a size is too small.

    Source: paper, appendix C.3; the authors' code (docs: concepts/authors-code).
    """
    check_sizes("DenseNet", num_classes=num_classes, in_chans=in_chans, width=width, multiple=2)
    if not layers or min(layers) < 1:
        raise SpecError("A DenseNet has dense blocks of at least one layer.", tuple(layers), "ints >= 1")
    model = DenseNet(
        growth_rate=width // 2,
        block_config=tuple(layers),
        num_classes=num_classes,
        in_chans=in_chans,
        global_pool=global_pool,
        act_layer=act_layer,
        norm_layer=norm_layer,
        drop_rate=drop_rate,
        proj_drop_rate=proj_drop_rate,
        memory_efficient=memory_efficient,
        device=device,
        dtype=dtype,
    )
    stem = nn.Conv2d(in_chans, width, kernel_size=3, padding=1, bias=False, device=device, dtype=dtype)
    model.features.conv0 = stem
    del model.features.norm0, model.features.pool0
    default_init(model)
    names = ("conv0", *(f"denseblock{i + 1}" for i in range(len(layers) - 1)), "norm5")
    reductions = (1, *(2**i for i in range(len(layers))))
    model.feature_info = [
        {**info, "reduction": reduction, "module": f"features.{name}"}
        for info, reduction, name in zip(model.feature_info, reductions, names, strict=True)
    ]
    children = [name for name, _ in model.features.named_children()]
    model.feature_ends = [children.index(name) for name in names]  # what forward_intermediates goes by
    return model
