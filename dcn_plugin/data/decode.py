"""From an image file to pixels: the evaluation transform of torchvision, resize then centre crop."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.support.arguments import check_choice

__all__ = ["EvalTransform", "Interpolation", "decode", "image_size"]

Interpolation = Literal["bilinear", "bicubic"]

# Images of 8 bits a channel. Pillow cuts wider ones ("I;16", "F") off at 255 without a word.
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
# What Pillow raises on broken files: its readers do not agree on one.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class EvalTransform:
    """How a file becomes an image of a given size.

    Args:
        size: height and width of the result, one int for a square; None leaves images as they are.
        resize: the shorter side, in pixels, before the centre is cut out; None is the longer side of ``size``, so
            that nothing but the surplus of the aspect ratio is lost. ImageNet networks of torchvision are tested
            with ``size=224, resize=256``, those of timm with ``resize=int(size / crop_pct)``.
        channels: 3, or 1 for grey (ITU-R 601 luma of a colour image).
        interpolation: "bilinear" or "bicubic", antialiased.

    Raises:
        SpecError: a value that does not fit.
    """

    size: int | tuple[int, int] | None = None
    resize: int | None = None
    channels: Literal[1, 3] = 3
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        crop = self.crop
        if crop is not None and (len(crop) != 2 or min(crop) < 1):
            raise SpecError("The image size is not usable.", self.size, "an int >= 1, or (height, width)")
        if self.resize is not None and (crop is None or self.resize < max(crop)):
            raise SpecError(
                "The centre cannot be cut out of the resized image.",
                {"size": self.size, "resize": self.resize},
                "resize >= size",
                "give both, e.g. size=224, resize=256",
            )
        if self.channels not in (1, 3):
            raise SpecError("Unknown number of channels.", self.channels, "1 (grey), 3 (RGB)")
        check_choice("interpolation", self.interpolation, Interpolation)

    @property
    def crop(self) -> tuple[int, int] | None:
        """(H, W) of the result, None if images stay as they are."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def shorter_side(self) -> int | None:
        """The shorter side before the crop, in pixels."""
        return self.resize or (None if self.crop is None else max(self.crop))


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(H, W) of an image file, read off its header.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except _BROKEN as error:
        raise _broken(path, error) from error


def decode(path: str | os.PathLike[str], transform: EvalTransform) -> Tensor:
    """Read one image file.

    Like torchvision's ImageFolder it drops transparency and does not turn images by their EXIF note.

    Returns:
        uint8 (C, H, W).

    Raises:
        DataError: the file is no image, is broken, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            mode = image.mode
            pixels = image.convert("L" if transform.channels == 1 else "RGB") if mode in _MODES else None
    except _BROKEN as error:
        raise _broken(path, error) from error
    if pixels is None:
        raise DataError(
            f"{os.fspath(path)} does not have 8 bits a channel.", mode, "grey, RGB or palette", "convert it to 8 bits"
        )
    if transform.crop is not None:
        pixels = F.resize(pixels, transform.shorter_side, InterpolationMode(transform.interpolation))
        pixels = F.center_crop(pixels, transform.crop)
    tensor: Tensor = F.pil_to_tensor(pixels)
    return tensor


def _broken(path: str | os.PathLike[str], error: BaseException) -> DataError:
    return DataError(
        f"{os.fspath(path)} cannot be read as an image.",
        f"{type(error).__name__}: {error}",
        "a whole image file",
        "restore it from its source, or remove it",
    )
