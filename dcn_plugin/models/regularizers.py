"""SpatialDropout and DropBlock in a ResNet, where the authors of the paper put them to compare with.

They drop other neurons at every step of training and none in test; a defective layer has the same ones silent always.
Both can be in one network: regularise a defective one, or make a regularised one defective.

timm's own ``drop_block_rate`` reaches only the first of the two places, with blocks of 5 in layer3 and with one
pattern for all channels.
"""

# No `from __future__ import annotations`: TorchScript reads the annotations of these classes as objects.

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from timm.layers import DropBlock2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from dcn_plugin.errors import BlockError, SpecError
from dcn_plugin.support.model_state import copy_of

__all__ = ["ConvThenDrop2d", "Regularizer", "regularize"]

Regularizer = Literal["spatial-dropout", "dropblock"]


class ConvThenDrop2d(nn.Conv2d):
    """What a convolution becomes that has a regulariser behind it: same parameters, same keys."""

    if TYPE_CHECKING:  # TorchScript would take the annotation for an interface
        regularizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.Conv2d's
        """Convolve, then drop."""
        return self.regularizer(self._conv_forward(input, self.weight, self.bias))  # type: ignore[no-any-return]


def regularize(
    model: nn.Module,
    kind: Regularizer = "spatial-dropout",
    *,
    keep: float = 0.9,
    block_size: int = 3,
    layers: Sequence[str] | None = None,
) -> nn.Module:
    """Put SpatialDropout or DropBlock into the residual blocks of a ResNet: a copy, inert in eval mode.

    Two places a block: after its first norm, before the ReLU, and between its last convolution and the norm behind it;
    in a bottleneck, which the authors' code does not show, after its second norm and behind its third convolution. The
    names of parameters and buffers stay as they are, and so does every mask. Like any dropout it draws from
    PyTorch's global generator, which :func:`dcn_plugin.training.train` seeds and gives back as it was.

    DropBlock is timm's with a pattern for every channel, which is what the authors run: blocks are drawn all over the
    map, with Ghiasi's rate for those that fit inside it. So it keeps less than ``keep``: of 0.9 with blocks of 3, 0.86
    on a map of 8x8 and 0.76 on one of 4x4, the maps of ResNet-18 at CIFAR size.

    Args:
        model: timm's ResNet or one of :func:`dcn_plugin.models.cifar_resnet`, plain or defective, or a wrapper of one.
        kind: "spatial-dropout" drops whole channels, "dropblock" squares in every channel by itself.
        keep: keep probability, in (0, 1).
        block_size: side of a square, >= 1; smaller maps have smaller ones. Ignored by "spatial-dropout".
        layers: names of the ResNet's layers; by default the last two: layer3 and layer4 of a ResNet-18, as in the
            authors' code.

    Returns:
        The regularised network.

    Raises:
        SpecError: an option is not usable, or the model is regularised already.
        BlockError: there is no such ResNet, or it has no such layer.

    Source: paper, section 4.1.1; the authors' code (docs: concepts/authors-code). Tompson et al. 2015, arXiv
    1411.4280; Ghiasi et al. 2018, arXiv 1810.12890.
    """
    if kind not in get_args(Regularizer):
        raise SpecError("Unknown regulariser.", kind, ", ".join(map(repr, get_args(Regularizer))))
    if not 0 < keep < 1:
        raise SpecError("The keep probability of a regulariser is not usable.", keep, "a number in (0, 1)")
    if not isinstance(block_size, int) or block_size < 1:
        raise SpecError("The block size of DropBlock is not usable.", block_size, "an int >= 1")
    regularized = copy_of(model)
    for block in _blocks(regularized, layers):
        block.drop_block = _make(kind, keep, block_size).train(block.training)
        conv = block.conv2 if isinstance(block, BasicBlock) else block.conv3
        conv.__class__ = ConvThenDrop2d
        conv.regularizer = _make(kind, keep, block_size).train(conv.training)
    return regularized


def _make(kind: Regularizer, keep: float, block_size: int) -> nn.Module:
    if kind == "spatial-dropout":
        return nn.Dropout2d(1 - keep)
    return DropBlock2d(1 - keep, block_size, couple_channels=False)


def _blocks(model: nn.Module, layers: Sequence[str] | None) -> list[BasicBlock | Bottleneck]:
    """The residual blocks of the chosen layers, checked."""
    nets = [module for module in model.modules() if isinstance(module, ResNet)]
    if len(nets) != 1:
        raise BlockError(
            f"{type(model).__name__} is not one ResNet of timm's.",
            f"{len(nets)} of them",
            "a ResNet that timm.create_model or dcn_plugin.models.cifar_resnet made, or a wrapper of one",
        )
    inside = {
        name: [block for block in child if isinstance(block, BasicBlock | Bottleneck)]
        for name, child in nets[0].named_children()
        if isinstance(child, nn.Sequential) and name.startswith("layer")
    }
    inside = {name: blocks for name, blocks in inside.items() if blocks}
    chosen = list(inside)[-2:] if layers is None else list(layers)
    if isinstance(layers, str) or not chosen or not inside.keys() >= set(chosen):
        raise BlockError("These are no layers of this ResNet.", layers, f"some of {', '.join(inside)}, as a sequence")
    blocks = [block for name in dict.fromkeys(chosen) for block in inside[name]]
    for block in blocks:
        conv = block.conv2 if isinstance(block, BasicBlock) else block.conv3
        if not isinstance(block.drop_block, nn.Identity) or isinstance(conv, ConvThenDrop2d):
            raise SpecError(
                "This ResNet is regularised already.",
                type(block.drop_block).__name__,
                "blocks without dropout",
                "regularise the plain network, once, with all its layers, and leave drop_block_rate at 0",
            )
        if type(conv) is not nn.Conv2d:
            raise BlockError("This ResNet has convolutions of another kind.", type(conv).__name__, "torch.nn.Conv2d")
    return blocks
