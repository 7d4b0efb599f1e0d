"""The paper's ResNet for small images (CIFAR, MNIST), put together from timm's own ResNet."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models.resnet import BasicBlock, ResNet, make_blocks
from torch import nn

from dcn_plugin.errors import SpecError

__all__ = ["cifar_resnet", "resnet18_cifar"]

MIN_WIDTH = 4


def resnet18_cifar(num_classes: int = 10, in_chans: int = 3, width: int = 64) -> ResNet:
    """ResNet-18 as the paper trains it on CIFAR-10: 11,173,962 parameters at width 64.

    Args:
        num_classes: number of logits.
        in_chans: colour channels of the images.
        width: channels of the stem and of layer1; layer2 .. layer4 have 2, 4 and 8 times as many.

    Returns:
        See :func:`cifar_resnet`.

    Raises:
        SpecError: an argument is too small.
    """
    return cifar_resnet((2, 2, 2, 2), num_classes=num_classes, in_chans=in_chans, width=width)


def cifar_resnet(
    layers: Sequence[int] = (2, 2, 2, 2), *, num_classes: int = 10, in_chans: int = 3, width: int = 64
) -> ResNet:
    """Build a post-activation ResNet with a 3x3 stride-1 stem and no max-pool.

    The children are timm's (conv1, bn1, layer1 .. layer4, fc), and so is ``feature_info``, with the
    reductions that hold here. Weights have PyTorch's default initialisation, as in the authors' code; timm's own
    (Kaiming normal, last norm of a block at zero) is undone by ``reset_parameters``. Like any module
    it draws from PyTorch's global generator; see :func:`dcn_plugin.training.isolated_rng`.

    Args:
        layers: number of basic blocks in layer1 .. layer4, each >= 1.
        num_classes: number of logits.
        in_chans: colour channels of the images.
        width: channels of the stem and of layer1, >= 4; they double from layer to layer.

    Returns:
        timm's ResNet: (N, in_chans, H, W) -> logits (N, num_classes), for H and W of 8 and more.

    Raises:
        SpecError: an argument is too small, or ``layers`` is not four numbers.

    Source: paper, section 4; FACTS of the authors' code (kuangliu-style ResNet-18).
    """
    if len(layers) != 4 or min(layers) < 1:
        raise SpecError("A ResNet here has four layers of at least one block.", tuple(layers), "four ints >= 1")
    if width < MIN_WIDTH:
        raise SpecError("The ResNet is too narrow.", width, f"width >= {MIN_WIDTH}")
    if num_classes < 1 or in_chans < 1:
        raise SpecError("A ResNet needs a class and a colour channel.", (num_classes, in_chans), "ints >= 1")
    channels = (width, 2 * width, 4 * width, 8 * width)
    # timm annotates instances where it means classes, and the type of its deepest stem for every stem.
    model = ResNet(
        BasicBlock,  # type: ignore[arg-type]
        tuple(layers),
        num_classes=num_classes,
        in_chans=in_chans,
        channels=channels,
        zero_init_last=False,
    )
    model.conv1 = nn.Conv2d(in_chans, width, kernel_size=3, padding=1, bias=False)  # type: ignore[assignment]
    model.bn1 = nn.BatchNorm2d(width)
    model.maxpool = nn.Identity()  # type: ignore[assignment]
    # timm fixes the width of its one-convolution stem at 64, so layer1 is made again for the true width.
    stages, _ = make_blocks((BasicBlock,) * 4, channels, tuple(layers), inplanes=width)
    model.layer1 = stages[0][1]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    model.feature_info = [
        {"num_chs": width, "reduction": 1, "module": "act1"},
        *({"num_chs": c, "reduction": 2**i, "module": f"layer{i + 1}"} for i, c in enumerate(channels)),
    ]
    return model
