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
    "keep_probability",
    "natural",
    "positive",
    "positive_number",
    "probability",
    "radius",
    "share",
]


def add_no_progress(parser: argparse.ArgumentParser) -> None:
    """``--no-progress``, which long commands share."""
    parser.add_argument(
        "--no-progress", action="store_true", help="show no progress bars, and no lines in their place in a log"
    )


def positive(text: str) -> int:
    """An int >= 1."""
    number = natural(text)
    if not number:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def natural(text: str) -> int:
    """An int >= 0."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


def positive_number(text: str) -> float:
    """A finite number > 0, also written as a fraction."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def radius(text: str) -> float:
    """A radius around images in [0, 1]: in (0, 1], also written as a fraction."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not in (0, 1], the unit of images in [0, 1]; write e.g. 8/255")
    return number


def share(text: str) -> float:
    """A share of a whole that something is left of: in [0, 1)."""
    number = _number(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not in [0, 1)")
    return number


def keep_probability(text: str) -> float:
    """A keep probability: in (0, 1]."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no keep probability in (0, 1]")
    return number


def probability(text: str) -> float:
    """A probability: in [0, 1]."""
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no probability in [0, 1]")
    return number


def _number(text: str) -> float:
    top, slash, bottom = text.partition("/")
    try:
        return float(top) / float(bottom) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.1 or 8/255") from None
