"""The paper's SENet for small images (CIFAR, MNIST): timm's pre-activation ResNet with squeeze-and-excitation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import (
    ClassifierHead,
    LayerType,
    SEModule,
    calculate_drop_path_rates,
    create_conv2d,
    get_norm_act_layer,
)
from timm.models.resnetv2 import PreActBasic, ResNetStage, ResNetV2
from torch import Tensor, nn

from dcn_plugin.errors import SpecError
from dcn_plugin.models.parts import check_sizes, default_init

__all__ = ["SEPreActBasic", "cifar_senet"]


class SEPreActBasic(PreActBasic):
    """timm's pre-activation basic block, its residual scaled by squeeze-and-excitation with reduction 16."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Build the block; arguments are those of :class:`timm.models.resnetv2.PreActBasic`."""
        super().__init__(*args, **options)
        device, dtype = options.get("device"), options.get("dtype")
        self.se = SEModule(self.conv2.out_channels, rd_ratio=1 / 16, rd_divisor=1, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_chs, H / stride, W / stride)."""
        activated = self.norm1(x)
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(activated)
        x = self.conv1(activated)
        x = self.conv2(self.norm2(x))
        x = self.drop_path(self.se(x))
        return x + shortcut


def cifar_senet(
    layers: Sequence[int] = (2, 2, 2, 2),
    *,
    num_classes: int = 10,
    in_chans: int = 3,
    width: int = 64,
    global_pool: str = "avg",
    act_layer: LayerType = "relu",
    norm_layer: LayerType = "batchnorm2d",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ResNetV2:
    """Build a pre-activation SENet with a 3x3 stride-1 stem (norm and activation behind it) and no max-pool.

    A projection is a bare 1x1 convolution that reads what the block's first norm has activated. Nothing comes
    between the last block and the pooling, neither norm nor activation. The children are timm's (stem, stages,
    norm, head), and the classifier is a linear layer. Weights have PyTorch's default initialisation, as in the
    authors' code.

    Args:
        layers: number of blocks in each of the four stages, all >= 1.
        num_classes: number of logits; 0 leaves the classifier out.
        in_chans: colour channels of the images.
        width: channels of the stem and of the first stage, a multiple of 8 (timm rounds to it); they double from
            stage to stage.
        global_pool: as in timm, and so are ``act_layer``, ``norm_layer``, ``drop_rate``, ``drop_path_rate``,
            ``device`` and ``dtype``.

    Returns:
        timm's ResNetV2: (N, in_chans, H, W) -> logits (N, num_classes), for H and W of 8 and more.

    Raises:
        SpecError: a size is too small, ``layers`` is not four numbers, or the width is no multiple of 8.

    Source: paper, appendix C.4; the authors' code (docs: concepts/authors-code).
    """
    check_sizes("SENet", num_classes=num_classes, in_chans=in_chans, width=width, multiple=8)
    if len(layers) != 4 or min(layers) < 1:
        raise SpecError("A SENet here has four stages of at least one block.", tuple(layers), "four ints >= 1")
    placed: dict[str, Any] = {"device": device, "dtype": dtype}
    channels = tuple(width * 2**i for i in range(4))
    norm_act = get_norm_act_layer(norm_layer, act_layer=act_layer)
    # timm's stages have no argument for the block, so the network is built without blocks and gets its stages here.
    model = ResNetV2(
        (0,) * 4,  # type: ignore[arg-type]
        channels,
        num_classes=num_classes,
        in_chans=in_chans,
        stem_chs=width,
        global_pool=global_pool,
        act_layer=act_layer,  # type: ignore[arg-type]
        norm_layer=norm_layer,  # type: ignore[arg-type]
        conv_layer=create_conv2d,
        drop_rate=drop_rate,
        **placed,
    )
    stem = nn.Conv2d(in_chans, width, kernel_size=3, padding=1, bias=False, **placed)
    model.stem = nn.Sequential(OrderedDict(conv=stem, norm=norm_act(width, **placed)))
    model.stem_feat_idx = 1
    rates = calculate_drop_path_rates(drop_path_rate, list(layers), stagewise=True)
    for i, (depth, rate) in enumerate(zip(layers, rates, strict=True)):
        model.stages[i] = ResNetStage(
            channels[max(i - 1, 0)],
            channels[i],
            stride=1 if i == 0 else 2,
            dilation=1,
            depth=depth,
            bottle_ratio=1.0,
            block_dpr=rate,  # type: ignore[arg-type]
            block_fn=SEPreActBasic,
            conv_layer=create_conv2d,
            norm_layer=norm_act,
            **placed,
        )
    model.norm = nn.Identity()
    model.head = ClassifierHead(channels[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, **placed)
    default_init(model)
    model.feature_info = [
        {"num_chs": width, "reduction": 1, "module": "stem.norm"},
        *({"num_chs": c, "reduction": 2**i, "module": f"stages.{i}"} for i, c in enumerate(channels)),
    ]
    return model
