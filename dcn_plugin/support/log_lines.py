"""Lines for a log: where stderr is no terminal (CI, nohup, a batch job), a finished step is told in one line."""

from __future__ import annotations

import sys

__all__ = ["log_line"]


def log_line(text: str, *, show: bool = True) -> None:
    """Write a line to stderr, unless that is a terminal, where a progress bar says the same.

    Args:
        text: what is finished.
        show: nothing is written without.
    """
    if show and not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)
