"""Progress on stderr: a bar in a terminal, a line a finished cell where there is none, or nothing."""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

from dcn_plugin.support.processes import ALONE, Team

__all__ = ["progress_bar"]


def progress_bar(total: int, what: str, *, show: bool, unit: str = "image", team: Team = ALONE) -> Any:
    """A tqdm bar over ``total`` units: a context manager with ``update(n)``, ``set_description(text)`` and ``cell``.

    ``cell(title, number, count)`` says that so many of ``count`` parts of the work are done. In a terminal the bar
    shows that anyway; in a log, where a bar is hidden, it becomes a line: "transfer 3/12: PGD on resnet18, 41 s".

    Of several processes only the first shows anything.
    """
    show = show and team.leads
    return _bar_class()(
        total=total, desc=what, unit=unit, disable=None if show else True, leave=False, dynamic_ncols=True, log=show
    )


@functools.cache
def _bar_class() -> Any:
    from tqdm import tqdm  # ships with huggingface_hub, which timm needs

    class Bar(tqdm):  # type: ignore[misc]
        """A bar that can also write lines."""

        def __init__(self, *, desc: str, log: bool, **options: Any) -> None:
            super().__init__(desc=desc, **options)
            self._name, self._log, self._start = desc, log, time.monotonic()

        def cell(self, title: str, number: int, count: int) -> None:
            """Say that a part is done, where no bar says so."""
            if self._log and self.disable:
                seconds = time.monotonic() - self._start
                print(f"{self._name} {number}/{count}: {title}, {seconds:.0f} s", file=sys.stderr, flush=True)

    return Bar
