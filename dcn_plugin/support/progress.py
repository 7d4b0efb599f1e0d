"""Progress on stderr: a bar in a terminal, a line a finished part where there is none (CI, a batch job), or nothing."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

from dcn_plugin.support.processes import ALONE, Team

__all__ = ["log_line", "progress_bar"]


def log_line(text: str, *, show: bool = True) -> None:
    """Write a line to stderr, unless that is a terminal, where a progress bar says the same.

    Args:
        text: what is finished.
        show: nothing is written without.
    """
    if show and not sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)


def progress_bar(
    total: int, what: str, *, show: bool, unit: str = "image", team: Team = ALONE, layout: str | None = None
) -> Any:
    """A tqdm bar over ``total`` units: a context manager with ``update(n)``, ``set_description(text)`` and two more.

    ``reach(done)`` moves the bar to ``done`` units, wherever it stands. ``cell(title, number, count)`` says that part
    ``number`` of ``count`` is done. In a terminal the bar shows that anyway; in a log, where a bar is hidden, it
    becomes a line: "transfer 3/12: PGD on resnet18, 41 s".

    Args:
        total: number of units.
        what: stands before the bar and the lines.
        show: nothing is shown without.
        unit: of the work, in the singular.
        team: of several processes only the first shows anything.
        layout: tqdm's ``bar_format``; its own by default.
    """
    show = show and team.leads
    return _bar_class()(
        total=total, desc=what, unit=unit, disable=None if show else True, leave=False, dynamic_ncols=True,
        bar_format=layout, log=show,
    )  # fmt: skip


@functools.cache
def _bar_class() -> Any:
    from tqdm import tqdm  # ships with huggingface_hub, which timm needs

    class Bar(tqdm):  # type: ignore[misc]
        """A bar that can also write lines."""

        def __init__(self, *, desc: str, log: bool, **options: Any) -> None:
            super().__init__(desc=desc, **options)
            self._name, self._log, self._start = desc, log, time.monotonic()

        def reach(self, done: float) -> None:
            """Move the bar to ``done`` units: to the end of a part that took no work, or was shared out unevenly."""
            self.update(done - self.n)

        def cell(self, title: str, number: int, count: int) -> None:
            """Say that a part is done, where no bar says so."""
            log_line(f"{self._name} {number}/{count}: {title}, {time.monotonic() - self._start:.0f} s", show=self._log)

    return Bar
