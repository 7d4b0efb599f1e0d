"""Conclusions in words, every one computed from the records; whatever the numbers say is what is said."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dcn_plugin.evaluate import Result
from dcn_plugin.report.aggregate import Cell, cells, clean_cells
from dcn_plugin.report.tables.changes import CHANGES, noise_strength
from dcn_plugin.report.tables.checks import FAIL, UNKNOWN, verdict
from dcn_plugin.report.tables.distances import distance_cells, distance_interval
from dcn_plugin.support.number_format import listed, number, percent, points

__all__ = ["findings"]

# Up to so many settings of one protocol get a sentence each; more are summed up.
_SENTENCES = 6

# Not the shuffle: there a low accuracy may be the better one.
_PROTOCOLS = ("transfer", "tapm", "whitebox", *(name for name in CHANGES if name != "shuffle"))


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
        return _apart(self.other.accuracy_interval, self.base.accuracy_interval)

    def runs_above(self) -> str:
        """In how many of several runs the other network is above the baseline of the same seed."""
        base = {run.seed: run.accuracy_all for run in self.base.runs}
        both = [(run.accuracy_all, base.get(run.seed)) for run in self.other.runs]
        shared = [(other, own) for other, own in both if other is not None and own is not None]
        if len(shared) < 2:
            return ""
        return f"; above in {sum(other > own for other, own in shared)} of {len(shared)} runs"


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
    return [*(_comparison(results, baseline) if baseline is not None else []), *_checks(results)]


def _comparison(results: Sequence[Result], baseline: str) -> list[str]:
    sentences = _clean(results, baseline)
    every: list[_Pair] = []
    for protocol in _PROTOCOLS:
        groups: dict[tuple[object, ...], list[Cell]] = {}
        found = cells(results, protocol=protocol)
        for cell in found:
            groups.setdefault((*cell.condition, cell.strength), []).append(cell)
        compared = [pairs for group in groups.values() if (pairs := _pairs(group, baseline))]
        if len(compared) > _SENTENCES:
            sentences.append(_summed_up(protocol, compared))
        else:
            sentences += [f"{_setting(pairs[0].base, found)}: {_best(pairs)}" for pairs in compared]
        every += [pair for pairs in compared for pair in pairs]
    if every:
        above = sum(pair.difference > 0 for pair in every)
        below = sum(pair.difference < 0 for pair in every)
        apart = sum(pair.apart for pair in every)
        sentences.append(
            f"Of the {len(every)} comparisons with {baseline} (accuracy on all images, mean over the runs), the other "
            f"network is above in {above}, equal in {len(every) - above - below} and below in {below}. The 95 % "
            f"intervals do not overlap in {apart}."
        )
    return [*sentences, *_distances(results, baseline), *_shape_bias(results, baseline)]


def _clean(results: Sequence[Result], baseline: str) -> list[str]:
    sentences = []
    found = clean_cells(results)
    sets = list(dict.fromkeys((cell.data, cell.runs[0].data_hash) for cell in found))
    for data, data_hash in sets:
        clean = {cell.target: cell for cell in found if (cell.data, cell.runs[0].data_hash) == (data, data_hash)}
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


def _setting(cell: Cell, found: Sequence[Cell]) -> str:
    """What was done: "PGD on resnet18, eps 8/255"."""
    images = f", {cell.data}" if len({other.data for other in found}) > 1 else ""
    strength = ("" if cell.strength is None else f", eps {number(cell.strength)}") + images
    if cell.protocol == "transfer":
        return f"{cell.attack} on {cell.source}{strength}"
    if cell.protocol == "tapm":
        return f"Worst of all transfer attacks{strength}"
    if cell.protocol == "whitebox":
        return f"White-box {cell.attack}{strength}"
    words = CHANGES[cell.protocol]
    name = noise_strength(found) if cell.protocol == "gaussian" else words.strength
    return words.title + (f", {name} {number(cell.strength)}" if name else "") + images


def _best(pairs: Sequence[_Pair]) -> str:
    best = max(pairs, key=lambda pair: pair.difference)
    base, other = best.base, f"{best.other.target} with {percent(best.other.accuracy)}"
    start = f"{base.target} still classifies {percent(base.accuracy)} of all images correctly"
    if best.difference <= 0:
        return f"{start}; no other network does better (best of them: {other})."
    return f"{start}; best is {other} ({points(best.difference)}{best.runs_above()})."


def _summed_up(protocol: str, compared: Sequence[Sequence[_Pair]]) -> str:
    base = compared[0][0].base.target
    differences: dict[str, list[float]] = {}
    for pairs in compared:
        for pair in pairs:
            differences.setdefault(pair.other.target, []).append(pair.difference)
    parts = [
        f"{name} {points(statistics.fmean(own))} (above in {sum(d > 0 for d in own)} of {len(own)})"
        for name, own in differences.items()
    ]
    title = {"transfer": "Transfer attacks", "tapm": "TAPM", "whitebox": "White-box attacks"}.get(protocol)
    return (
        f"{title or CHANGES[protocol].title}, {len(compared)} settings: mean difference to {base} in accuracy on all "
        f"images: {'; '.join(parts)}."
    )


def _distances(results: Sequence[Result], baseline: str) -> list[str]:
    groups: dict[tuple[object, ...], dict[str, Cell]] = {}
    for cell in distance_cells(results):
        groups.setdefault(cell.condition, {})[cell.target] = cell
    sentences = []
    for group in groups.values():
        base = group.pop(baseline, None)
        own = None if base is None else base.figure("median_distance")
        if base is None or own is None or own.mean <= 0:
            continue
        parts = []
        for name, cell in group.items():
            median = cell.figure("median_distance")
            if median is not None:
                apart = _apart(distance_interval(cell), distance_interval(base))
                parts.append(f"{name} {median.mean / own.mean:.2f}{'' if apart else ' (intervals overlap)'}")
        if parts:
            sentences.append(f"{base.attack}: median distance in units of {baseline}'s: {', '.join(parts)}.")
    return sentences


def _shape_bias(results: Sequence[Result], baseline: str) -> list[str]:
    biases: dict[tuple[object, ...], dict[str, float]] = {}
    for cell in cells(results, protocol="cue-conflict"):
        bias = cell.figure("shape_bias")
        if bias is not None:
            biases.setdefault(cell.condition, {})[cell.target] = bias.mean
    sentences = []
    for group in biases.values():
        own = group.pop(baseline, None)
        if own is not None and group:
            parts = [f"{name} {percent(bias)} ({points(bias - own)})" for name, bias in group.items()]
            sentences.append(f"Shape bias: {baseline} {percent(own)}; {', '.join(parts)}.")
    return sentences


def _checks(results: Sequence[Result]) -> list[str]:
    found = cells(results, protocol="sanity")
    sentences, clear = [], []
    for target in dict.fromkeys(cell.target for cell in found):
        own = [cell for cell in found if cell.target == target]
        failed = [cell.attack for cell in own if verdict(cell) == FAIL]
        unknown = [cell.attack for cell in own if verdict(cell) == UNKNOWN]
        if not failed and not unknown:
            clear.append(target)
            continue
        sentences.append(
            f"Checks for gradient masking, {target}: {len(own) - len(failed) - len(unknown)} of {len(own)} pass"
            + (f"; failed: {listed(failed)}" if failed else "")
            + (f"; not decided: {listed(unknown)}" if unknown else "")
            + "."
        )
    return sentences + ([f"Checks for gradient masking: all pass for {listed(clear, most=20)}."] if clear else [])


def _apart(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    return one is not None and other is not None and (one[0] > other[1] or one[1] < other[0])
