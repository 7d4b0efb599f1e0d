"""The paper's post-activation ResNets for small images (CIFAR, MNIST), put together from timm's own ResNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers import LayerType, get_act_layer, get_norm_layer
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, ResNet, downsample_conv, make_blocks
from torch import Tensor, nn

from dcn_plugin.errors import SpecError
from dcn_plugin.models.parts import check_sizes, default_init

__all__ = ["cifar_resnet"]


def cifar_resnet(
    layers: Sequence[int] = (2, 2, 2, 2),
    *,
    block: Literal["basic", "bottleneck"] = "basic",
    num_classes: int = 10,
    in_chans: int = 3,
    width: int = 64,
    widths: Sequence[int] | None = None,
    project_first: bool = False,
    stem_reduction: Literal[1, 4] = 1,
    global_pool: str = "avg",
    act_layer: LayerType = nn.ReLU,
    norm_layer: LayerType = nn.BatchNorm2d,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> ResNet:
    """Build a post-activation ResNet with a 3x3 stem, for small images of stride 1 and without a max-pool.

    The children are timm's (conv1, bn1, layer1 .. layer4, fc), and so is ``feature_info``, with the
    reductions that hold here. Weights have PyTorch's default initialisation, as in the authors' code; timm's own
    (Kaiming normal, last norm of a block at zero) is undone. Like any module it draws from PyTorch's global
    generator; see :func:`dcn_plugin.training.isolated_rng`.

    Args:
        layers: number of blocks in each of the three or four layers, all >= 1.
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, 1x1 to four times the channels).
        num_classes: number of logits; 0 leaves the classifier out.
        in_chans: colour channels of the images.
        width: channels of the stem and of layer1, >= 4; they double from layer to layer.
        widths: channels of the stem and of each layer, all >= 1, instead of ``width``.
        project_first: give the first block of layer1 a projection (1x1 convolution and norm) for a shortcut even
            where its channels agree, as the authors' networks of other widths have it.
        stem_reduction: how many times smaller than the images the maps of layer1 are. 4 is the authors' network for
            ImageNet: the stem has stride 2, and timm's 3x3 max-pool of stride 2 follows it.
        global_pool: as in timm, and so are ``act_layer``, ``norm_layer``, ``drop_rate``, ``drop_path_rate``,
            ``device`` and ``dtype``.

    Returns:
        timm's ResNet: (N, in_chans, H, W) -> logits (N, num_classes), for H and W of 8 and more (32 and more where the
        stem reduces by 4).

    Raises:
        SpecError: a size is too small, an option unknown, or ``layers`` and ``widths`` do not fit together.

    Source: paper, appendix C.1, C.2, C.6; the authors' code (docs: concepts/authors-code).
    """
    check_sizes("ResNet", num_classes=num_classes, in_chans=in_chans, width=width)
    if len(layers) not in (3, 4) or min(layers) < 1:
        raise SpecError(
            "A ResNet here has three or four layers of at least one block.", tuple(layers), "3 or 4 ints >= 1"
        )
    if stem_reduction not in (1, 4):
        raise SpecError("Unknown reduction of a stem.", stem_reduction, "1, 4")
    if block not in ("basic", "bottleneck"):
        raise SpecError("Unknown block.", block, "'basic', 'bottleneck'")
    stem, *channels = widths or (width, *(width * 2**i for i in range(len(layers))))
    if len(channels) != len(layers) or min(stem, *channels) < 1:
        raise SpecError(
            "The widths do not fit the layers.", tuple(widths or ()), f"{len(layers) + 1} ints >= 1, the stem's first"
        )
    block_class = BasicBlock if block == "basic" else Bottleneck
    parts: dict[str, Any] = {
        "act_layer": get_act_layer(act_layer),
        "norm_layer": get_norm_layer(norm_layer),
        "drop_path_rate": drop_path_rate,
        "device": device,
        "dtype": dtype,
    }
    # timm annotates instances where it means classes, and the type of its deepest stem for every stem.
    model = (ResNet if len(layers) == 4 else _ThreeLayerResNet)(
        block_class,  # type: ignore[arg-type]
        tuple(layers),
        num_classes=num_classes,
        in_chans=in_chans,
        channels=tuple(channels),
        global_pool=global_pool,
        drop_rate=drop_rate,
        zero_init_last=False,
        **parts,
    )
    placed = {"device": device, "dtype": dtype}
    stride = 1 if stem_reduction == 1 else 2
    model.conv1 = nn.Conv2d(in_chans, stem, 3, stride=stride, padding=1, bias=False, **placed)  # type: ignore[assignment, arg-type]
    model.bn1 = parts["norm_layer"](stem, **placed)
    if stem_reduction == 1:
        model.maxpool = nn.Identity()  # type: ignore[assignment]
    # timm fixes the width of its one-convolution stem at 64, so layer1 is made again for the true width.
    stages, _ = make_blocks((block_class,) * len(layers), tuple(channels), tuple(layers), inplanes=stem, **parts)
    model.layer1 = stages[0][1]
    first, out = stages[0][1][0], channels[0] * block_class.expansion  # type: ignore[index]
    if project_first and first.downsample is None:
        first.downsample = downsample_conv(stem, out, 1, norm_layer=parts["norm_layer"], **placed)  # type: ignore[arg-type]
    default_init(model)
    model.feature_info = [
        {"num_chs": stem, "reduction": stride, "module": "act1"},
        *(
            {"num_chs": c * block_class.expansion, "reduction": stem_reduction * 2**i, "module": f"layer{i + 1}"}
            for i, c in enumerate(channels)
        ),
    ]
    return model


class _ThreeLayerResNet(ResNet):
    """timm's ResNet without layer4: an empty one, which its ``forward`` runs, and which no feature speaks of."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.layer4 = nn.Sequential()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """As timm's, with one index less."""
        taken = list(feature_take_indices(4, indices)[0])
        return super().forward_intermediates(x, taken, norm, stop_early, output_fmt, intermediates_only)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As timm's, with one index less."""
        taken = list(feature_take_indices(4, indices)[0])
        return super().prune_intermediate_layers(taken, prune_norm, prune_head)
