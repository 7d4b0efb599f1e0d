"""What the paper's networks for small images have in common: checks of their sizes, and PyTorch's own start."""

from __future__ import annotations

from torch import nn

from dcn_plugin.errors import SpecError

__all__ = ["check_sizes", "default_init"]

MIN_WIDTH = 4


def check_sizes(name: str, *, num_classes: int, in_chans: int, width: int, multiple: int = 1) -> None:
    """Check what every builder takes.

    Args:
        name: of the network, for the message.
        num_classes: number of logits, 0 for none.
        in_chans: colour channels of the images.
        width: channels of the first stage; 64 is the paper's.
        multiple: ``width`` must be a multiple of it, because the network divides it.

    Raises:
        SpecError: one of them is too small, or the network cannot divide the width.
    """
    if num_classes < 0 or in_chans < 1:
        raise SpecError(
            f"A {name} needs a colour channel and no negative number of classes.",
            (num_classes, in_chans),
            "num_classes >= 0 and in_chans >= 1",
        )
    if width < MIN_WIDTH or width % multiple:
        allowed = f"width >= {MIN_WIDTH}" + (f", a multiple of {multiple}" if multiple > 1 else "")
        raise SpecError(f"A {name} cannot have this width.", width, allowed, "the paper's is 64")


def default_init(model: nn.Module) -> None:
    """Start all convolutions and linear layers as PyTorch does, as the authors' code has it; timm starts otherwise."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
