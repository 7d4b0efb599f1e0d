"""Conclusions in words, every one computed from the records; whatever the numbers say is what is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcn_plugin.evaluate import Result
from dcn_plugin.report.groups import Cell, cells, clean_cells, percent

__all__ = ["findings"]


@dataclass(frozen=True)
class _Pair:
    """One network beside the baseline, under one setting."""

    base: Cell
    other: Cell

    @property
    def difference(self) -> float:
        """Mean accuracy on all images, other minus baseline."""
        return self.other.accuracy.mean - self.base.accuracy.mean

    @property
    def apart(self) -> bool:
        """Whether the two 95 % intervals do not overlap."""
        (low, high), (base_low, base_high) = self.other.accuracy_interval, self.base.accuracy_interval
        return low > base_high or high < base_low

    def runs_above(self) -> str:
        """In how many of several runs the other network is above the baseline of the same seed."""
        base = {run.seed: run.accuracy_all for run in self.base.runs}
        shared = [run for run in self.other.runs if run.seed in base]
        if len(shared) < 2:
            return ""
        return f"; above in {sum(run.accuracy_all > base[run.seed] for run in shared)} of {len(shared)} runs"


def findings(results: Sequence[Result], *, baseline: str) -> list[str]:
    """Compare every network with one of them.

    Args:
        results: records of any protocols.
        baseline: name of the target that the others are held against.

    Returns:
        Sentences: what the change costs on clean images, then one a protocol and strength, then the tally.
        Empty where the baseline was not measured or is alone.
    """
    clean = {cell.target: cell for cell in clean_cells(results)}
    others = [cell for name, cell in clean.items() if name != baseline]
    if baseline not in clean or not others:
        return []
    worst = min(others, key=lambda cell: cell.clean.mean)
    cost = worst.clean.mean - clean[baseline].clean.mean
    sentences = [
        f"Clean images: {baseline} classifies {percent(clean[baseline].clean)} correctly; the lowest of the others is "
        f"{worst.target} with {percent(worst.clean)} ({_points(cost)})."
    ]
    every: list[_Pair] = []
    for protocol, strength in (("transfer", "eps"), ("gaussian", "sigma")):
        groups: dict[tuple[str | None, str | None, float | None], list[Cell]] = {}
        for cell in cells(results, protocol=protocol):
            groups.setdefault((cell.source, cell.attack, cell.eps), []).append(cell)
        for (source, attack, eps), group in groups.items():
            base = next((cell for cell in group if cell.target == baseline), None)
            pairs = [_Pair(base, cell) for cell in group if base is not None and cell is not base]
            if pairs:
                what = f"{attack} on {source}" if source else "Gaussian noise"
                sentences.append(f"{what}, {strength} {eps}: {_best(pairs)}")
                every += pairs
    if every:
        above = sum(pair.difference > 0 for pair in every)
        below = sum(pair.difference < 0 for pair in every)
        apart = sum(pair.apart for pair in every)
        sentences.append(
            f"Of the {len(every)} comparisons with {baseline} (accuracy on all images, mean over the runs), the other "
            f"network is above in {above}, equal in {len(every) - above - below} and below in {below}. The 95 % "
            f"intervals do not overlap in {apart}."
        )
    return sentences


def _best(pairs: Sequence[_Pair]) -> str:
    best = max(pairs, key=lambda pair: pair.difference)
    base, other = best.base, f"{best.other.target} with {percent(best.other.accuracy)}"
    start = f"{base.target} still classifies {percent(base.accuracy)} of all images correctly"
    if best.difference <= 0:
        return f"{start}; no other network does better (best of them: {other})."
    return f"{start}; best is {other} ({_points(best.difference)}{best.runs_above()})."


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"
