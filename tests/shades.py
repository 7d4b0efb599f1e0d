"""Folders of grey-shaded images, and a network that knows the classes by their shade: right if the labels are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.image_files import write_image

SHADES = {"ant": 20, "bee": 90, "cat": 160, "dog": 230}
NAMES = tuple(SHADES)


def shaded_folder(
    root: Path, names: Sequence[str] = NAMES, *, count: int = 2, side: int = 8, grey: bool = False
) -> Path:
    """``root/<class>/<number>.png``, every pixel of the shade of the class."""
    shape = (side, side) if grey else (side, side, 3)
    for name in names:
        for number in range(count):
            write_image(root / name / f"{number}.png", np.full(shape, SHADES[name], np.uint8))
    return root


class Shade(nn.Module):
    """Logit k is largest for the shade of class k; it notes the size of every batch.

    Args:
        names: of the classes, in the order of the logits.
        channels: that it takes.
        side: height and width that it takes; None: any.
    """

    def __init__(self, names: Sequence[str] = NAMES, *, channels: int = 3, side: int | None = None) -> None:
        super().__init__()
        self.register_buffer("shades", torch.tensor([float(SHADES[name]) for name in names]))
        self.channels, self.side, self.asked = channels, side, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.channels:
            raise RuntimeError(
                f"expected input to have {self.channels} channels, but got {x.shape[1]} channels instead"
            )
        assert self.side in (None, x.shape[2]), f"Input height ({x.shape[2]}) doesn't match model ({self.side})."
        self.asked.append(len(x))
        shades: Tensor = self.get_buffer("shades")
        return -((x.mean((1, 2, 3))[:, None] * 255 - shades[None]).abs())


def shade(names: Sequence[str] = NAMES) -> nn.Module:
    """For the command line: ``tests.shades:shade``."""
    return Shade(names)


def grey_shade() -> nn.Module:
    """The same for images of one channel."""
    return Shade(channels=1)
