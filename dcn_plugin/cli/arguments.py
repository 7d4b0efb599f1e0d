"""What the subcommands' arguments have in common."""

from __future__ import annotations

import argparse
import math
from typing import TypeAlias

from dcn_plugin.cli.parsers import Parser

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"

__all__ = [
    "Commands",
    "add_no_progress",
    "folder",
    "keep_probability",
    "natural",
    "number",
    "positive",
    "positive_number",
    "probability",
    "radius",
    "size",
]


def add_no_progress(parser: argparse.ArgumentParser) -> None:
    """``--no-progress``, which long commands share."""
    parser.add_argument(
        "--no-progress", action="store_true", help="show no progress bars, and no lines in their place in a log"
    )


def folder(text: str) -> str:
    """A folder by name; an empty name, such as that of a variable that is not set, would be the one the user is in."""
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name is no folder; the current one is written .")
    return text


def positive(text: str) -> int:
    """An int >= 1."""
    number = natural(text)
    if not number:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def size(text: str) -> int | tuple[int, int]:
    """A side of square images, or height and width as "24x40"."""
    sides = [positive(side) for side in text.lower().replace(",", "x").split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a side nor HEIGHTxWIDTH")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def natural(text: str) -> int:
    """An int >= 0."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


def number(text: str) -> float:
    """A number, also written as a fraction."""
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.1 or 8/255") from None


def positive_number(text: str) -> float:
    """A finite number > 0, also written as a fraction."""
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def radius(text: str) -> float:
    """A radius around images in [0, 1]: in (0, 1], also written as a fraction."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not in (0, 1], the unit of images in [0, 1]; write e.g. 8/255")
    return value


def keep_probability(text: str) -> float:
    """A keep probability: in (0, 1]."""
    value = number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no keep probability in (0, 1]")
    return value


def probability(text: str) -> float:
    """A probability: in [0, 1]."""
    value = number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no probability in [0, 1]")
    return value
