"""Conclusions in words, every one computed from the records; whatever the numbers say is what is said."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dcn_plugin.evaluate import Result
from dcn_plugin.report.aggregate import Cell, apart, cells_of, clean_cells
from dcn_plugin.report.protocols import PARTS, ReportPart
from dcn_plugin.support.number_format import number, percent, points

__all__ = ["findings"]

# Up to this many settings of one protocol get a sentence each; more are summed up.
_SENTENCES = 6


@dataclass(frozen=True)
class _Pair:
    """One network beside the baseline, under one setting; both have an accuracy."""

    base: Cell
    other: Cell

    @property
    def difference(self) -> float:
        """Mean accuracy on all images, other minus baseline."""
        assert self.other.accuracy is not None and self.base.accuracy is not None
        return self.other.accuracy.mean - self.base.accuracy.mean

    @property
    def apart(self) -> bool:
        """Whether the two 95 % intervals do not overlap."""
        return apart(self.other.accuracy_interval, self.base.accuracy_interval)

    def runs_above(self) -> str:
        """In how many of several runs the other network is above the baseline of the same seed."""
        base = {run.seed: run.accuracy_all for run in self.base.runs}
        both = [(run.accuracy_all, base.get(run.seed)) for run in self.other.runs]
        shared = [(other, first) for other, first in both if other is not None and first is not None]
        if len(shared) < 2:
            return ""
        return f"; above in {sum(other > first for other, first in shared)} of {len(shared)} runs"


def findings(results: Sequence[Result], *, baseline: str | None) -> list[str]:
    """Compare every network with one of them, and say how the checks came out.

    Args:
        results: records of any protocols.
        baseline: name of the target that the others are held against; None: nothing is compared.

    Returns:
        Sentences: what the change costs on clean images, then one a protocol and setting (or one a protocol, where
        there are many settings), the tally, distances and shape bias, the checks. Where the baseline was not
        measured or is alone, the checks only.
    """
    sentences = [] if baseline is None else [*_clean(results, baseline), *_comparison(results, baseline)]
    return sentences + [sentence for part in PARTS.values() for sentence in part.sentences(results, baseline)]


def _comparison(results: Sequence[Result], baseline: str) -> list[str]:
    """One protocol after the other; not those where a low accuracy may be the better one."""
    sentences = []
    every: list[_Pair] = []
    for part in (part for part in PARTS.values() if part.protocol.better == "higher"):
        cells = cells_of(results, part.protocol)
        groups: dict[tuple[object, ...], list[Cell]] = {}
        for cell in cells:
            groups.setdefault((*cell.condition, cell.strength), []).append(cell)
        compared = [pairs for group in groups.values() if (pairs := _pairs(group, baseline))]
        if len(compared) > _SENTENCES:
            sentences.append(_summed_up(part.protocol.title, compared))
        else:
            sentences += [f"{_setting(part, pairs[0].base, cells)}: {_best(pairs)}" for pairs in compared]
        every += [pair for pairs in compared for pair in pairs]
    if every:
        above = sum(pair.difference > 0 for pair in every)
        below = sum(pair.difference < 0 for pair in every)
        distinct = sum(pair.apart for pair in every)
        sentences.append(
            f"Of the {len(every)} comparisons with {baseline} (accuracy on all images, mean over the runs), the other "
            f"network is above in {above}, equal in {len(every) - above - below} and below in {below}. The 95 % "
            f"intervals do not overlap in {distinct}."
        )
    return sentences


def _clean(results: Sequence[Result], baseline: str) -> list[str]:
    sentences = []
    cells = clean_cells(results)
    sets = list(dict.fromkeys((cell.data, cell.runs[0].data_hash) for cell in cells))
    for data, data_hash in sets:
        clean = {cell.target: cell for cell in cells if (cell.data, cell.runs[0].data_hash) == (data, data_hash)}
        shares = {name: cell.clean for name, cell in clean.items()}
        base = shares.pop(baseline, None)
        others = {name: share for name, share in shares.items() if share is not None}
        if base is None or not others:
            continue
        worst = min(others, key=lambda name: others[name].mean)
        where = "Clean images" if len(sets) == 1 else f"Clean images of {data}"
        sentences.append(
            f"{where}: {baseline} classifies {percent(base)} correctly; the lowest of the others is {worst} with "
            f"{percent(others[worst])} ({points(others[worst].mean - base.mean)})."
        )
    return sentences


def _pairs(group: Sequence[Cell], baseline: str) -> list[_Pair]:
    # A network attacked by itself is no transfer, and would lose against all.
    measured = [cell for cell in group if cell.accuracy is not None and not cell.no_transfer]
    base = next((cell for cell in measured if cell.target == baseline), None)
    return [] if base is None else [_Pair(base, cell) for cell in measured if cell is not base]


def _setting(part: ReportPart, cell: Cell, cells: Sequence[Cell]) -> str:
    """What was done: "PGD on resnet18, eps 8/255"."""
    images = f", {cell.data}" if len({other.data for other in cells}) > 1 else ""
    name = part.strength(cells)
    strength = f", {name} {number(cell.strength)}" if name and cell.strength is not None else ""
    return part.subject(cell) + strength + images


def _best(pairs: Sequence[_Pair]) -> str:
    best = max(pairs, key=lambda pair: pair.difference)
    base, other = best.base, f"{best.other.target} with {percent(best.other.accuracy)}"
    start = f"{base.target} still classifies {percent(base.accuracy)} of all images correctly"
    if best.difference <= 0:
        return f"{start}; no other network does better (best of them: {other})."
    return f"{start}; best is {other} ({points(best.difference)}{best.runs_above()})."


def _summed_up(title: str, compared: Sequence[Sequence[_Pair]]) -> str:
    base = compared[0][0].base.target
    differences: dict[str, list[float]] = {}
    for pairs in compared:
        for pair in pairs:
            differences.setdefault(pair.other.target, []).append(pair.difference)
    parts = [
        f"{name} {points(statistics.fmean(values))} (above in {sum(d > 0 for d in values)} of {len(values)})"
        for name, values in differences.items()
    ]
    return (
        f"{title}, {len(compared)} settings: mean difference to {base} in accuracy on all images: {'; '.join(parts)}."
    )
