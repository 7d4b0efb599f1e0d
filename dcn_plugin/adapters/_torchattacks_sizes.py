"""Image sizes on which attacks of torchattacks (3.5.1) fail half-way, read from its source."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from dcn_plugin.adapters._foreign import Option
from dcn_plugin.errors import ImageRangeError, SpecError
from dcn_plugin.surgery import is_defective

__all__ = ["check_diversity", "check_square_l2", "square_l2_fits"]


def check_diversity(name: str, options: Mapping[str, Option], size: int, model: nn.Module) -> None:
    """Refuse input diversity that cannot resize images of ``size`` by ``size``, or shows a masked network another size.

    Raises:
        SpecError: ``resize_rate`` leaves no size to draw, or enlarges images for a network whose size is fixed.
    """
    rate = float(options["resize_rate"])
    low, high = sorted((size, int(size * rate)))
    if not 1 <= low < high:
        raise SpecError(
            f"resize_rate of torchattacks' {name} leaves no other size for images of {size} pixels.",
            rate,
            f"a number whose product with {size}, rounded down, is at least 1 and not {size}",
            "try 0.9, torchattacks' default" if int(size * 0.9) else "take larger images",
        )
    if rate > 1 and options["diversity_prob"] and _has_one_size(model):
        raise SpecError(
            f"resize_rate of torchattacks' {name} enlarges images, and the masks of this network have one size.",
            rate,
            "a number in (0, 1)",
            "try 0.9, torchattacks' default",
        )


def _has_one_size(model: nn.Module) -> bool:
    return is_defective(model) or any(getattr(module, "takes_one_size", False) for module in model.modules())


def check_square_l2(name: str, height: int, width: int, *, p_init: float) -> None:
    """Refuse image sizes on which Square in L2 fails.

    Raises:
        ImageRangeError: the size does not fit.
    """
    if square_l2_fits(height, width, p_init=p_init):
        return
    fitting = [size for size in range(1, 2 * max(height, width) + 8) if square_l2_fits(size, size, p_init=p_init)]
    near = sorted(fitting, key=lambda size: abs(size - min(height, width)))[:3]
    runs = "" if name == "Square" else ", which runs Square,"
    raise ImageRangeError(
        f"The tiles of torchattacks' {name}{runs} in L2 do not fit images of this size.",
        (height, width),
        "sizes that its tiles cover" + (f", such as {', '.join(f'{s} x {s}' for s in sorted(near))}" if near else ""),
        "resize the images, or take norm='Linf', or another L2 attack: APGD, FAB, PGDL2",
    )


def square_l2_fits(height: int, width: int, *, p_init: float) -> bool:
    """Whether Square in L2 runs on images of this size.

    It starts from tiles of height // 5 pixels, set from one corner on, which must not stick out at the other end; tiles
    of one pixel may, and where the image is narrower than a tile there are none. Then it changes windows whose side is
    at first sqrt(p_init * height * width), rounded, at least 3, and raised to an odd number; they must fit into the
    image, and later ones are smaller.
    """
    tile = height // 5
    if not tile:
        return False
    first = (height - 5 * tile) // 2
    tiles_fit = width < tile or all(first + side // tile * tile <= side for side in (height, width))
    window = max(round(math.sqrt(p_init * height * width)), 3)
    window += window % 2 == 0
    return (tiles_fit or tile == 1) and window <= min(height, width)
