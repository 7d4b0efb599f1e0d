"""Records grouped for showing: the same measurement on several training runs becomes one cell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import Result, Spread, spread, wilson

__all__ = ["Cell", "cells", "clean_cells", "percent"]


@dataclass(frozen=True)
class Cell:
    """One target under one setting, over all runs.

    Args:
        protocol: as in the records.
        source: as in the records.
        attack: as in the records.
        eps: as in the records.
        target: as in the records.
        runs: the records, one a run, by seed.
    """

    protocol: str
    source: str | None
    attack: str | None
    eps: float | None
    target: str
    runs: tuple[Result, ...]

    @property
    def accuracy(self) -> Spread:
        """Accuracy on all images."""
        return spread([run.accuracy_all for run in self.runs])

    @property
    def clean(self) -> Spread:
        """Accuracy on the clean images."""
        return spread([run.clean_accuracy for run in self.runs])

    @property
    def defense(self) -> Spread | None:
        """Defence rate over the runs that have one; None if no run has."""
        rates = [run.defense_rate for run in self.runs if run.defense_rate is not None]
        return spread(rates) if rates else None

    @property
    def clean_interval(self) -> tuple[float, float]:
        """As :attr:`accuracy_interval`, on the clean images."""
        return _envelope(wilson(run.n_clean_correct, run.n_total) for run in self.runs)

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """Envelope of the runs' Wilson 95 % intervals: from the lowest lower to the highest upper bound."""
        return _envelope(run.accuracy_interval for run in self.runs)

    @property
    def defense_interval(self) -> tuple[float, float] | None:
        """The same for the defence rate; None if no run has one."""
        known = [run.defense_interval for run in self.runs if run.defense_interval is not None]
        return _envelope(known) if known else None

    def total(self, count: str) -> int:
        """Sum of a count over the runs, by the name of its field."""
        return sum(int(getattr(run, count) or 0) for run in self.runs)


def cells(results: Sequence[Result], *, protocol: str) -> list[Cell]:
    """Group the records of one protocol, in the order in which they first appear.

    Raises:
        RecordError: a setting was measured twice with one seed.
    """
    groups: dict[tuple[str | None, str | None, float | None, str], dict[int, Result]] = {}
    for result in results:
        if result.protocol == protocol:
            key = (result.source, result.attack, result.eps, result.target)
            runs = groups.setdefault(key, {})
            if result.seed in runs:
                raise RecordError("The same setting was measured twice with one seed.", (protocol, *key, result.seed))
            runs[result.seed] = result
    return [Cell(protocol, *key, tuple(runs[seed] for seed in sorted(runs))) for key, runs in groups.items()]


def clean_cells(results: Sequence[Result]) -> list[Cell]:
    """One cell a target for its accuracy on clean images, read off the first record of each seed."""
    first: dict[str, dict[int, Result]] = {}
    for result in results:
        first.setdefault(result.target, {}).setdefault(result.seed, result)
    return [
        Cell("clean", None, None, None, target, tuple(runs[seed] for seed in sorted(runs)))
        for target, runs in first.items()
    ]


def percent(value: Spread | float | None) -> str:
    """A share as a person reads it: "34.1 %", over several runs "34.1 ± 2.0 %" (sample standard deviation)."""
    if value is None:
        return "–"
    if isinstance(value, Spread):
        if value.std is not None:
            return f"{100 * value.mean:.1f} ± {100 * value.std:.1f} %"
        value = value.mean
    return f"{100 * value:.1f} %"


def _envelope(intervals: Iterable[tuple[float, float]]) -> tuple[float, float]:
    lows, highs = zip(*intervals, strict=True)
    return min(lows), max(highs)
