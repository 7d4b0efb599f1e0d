"""What the subcommands' arguments have in common."""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

__all__ = ["Commands", "add_no_progress", "natural", "positive"]


def add_no_progress(parser: argparse.ArgumentParser) -> None:
    """``--no-progress``, which long commands share."""
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")


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
