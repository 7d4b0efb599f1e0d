"""What a recipe finds: every row held against the row without masks, ours beside the paper's, with an interval.

Absolute numbers of small networks differ from the paper's for a trivial reason. What can be compared is the effect: a
row less its reference in the same column, in percentage points; for distances their ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from dcn_plugin.evaluate import Result
from dcn_plugin.experiments.comparison import Number
from dcn_plugin.experiments.networks import Network
from dcn_plugin.experiments.recipe import RecipeSpec, is_rate
from dcn_plugin.support.statistics import Interval, difference_interval, newcombe, student_quantile

__all__ = ["Effect", "Unit", "effects_of", "references"]

Unit = Literal["points", "factor"]

_ANYTHING: Interval = (-math.inf, math.inf)


@dataclass(frozen=True)
class Effect:
    """One number of a table less its reference.

    Args:
        row: of the number.
        against: the reference's row.
        column: of both.
        unit: "points": difference of percentages; "factor": natural logarithm of a ratio.
        ours: the effect.
        low: lower end of its 95 % interval.
        high: upper end.
        paper: the paper's effect, None where it lacks one of the two numbers.
        inferred: a label or setting of the paper's numbers is our reading.
    """

    row: str
    against: str
    column: str
    unit: Unit
    ours: float
    low: float
    high: float
    paper: float | None
    inferred: bool = False


def references(spec: RecipeSpec) -> dict[str, str]:
    """Which row each row is held against.

    The recipe's own choice (``[against]``), else the first row that differs by its masks only (same network, defence
    and number of members), else the standard row of the same network. A row that has none of them is not in it.
    """
    without: dict[tuple[object, ...], str] = {}
    for label, networks in spec.rows.items():
        if not any(_masked(network) for network in networks):
            without.setdefault(tuple(map(_kind, networks)), label)
    references = {}
    for label, networks in spec.rows.items():
        nets = {network.net for network in networks}
        standard = without.get(((*nets, None, 1),)) if len(nets) == 1 else None
        against = spec.against.get(label) or without.get(tuple(map(_kind, networks)), standard)
        if against == label:  # a defence without masks is its own twin
            against = standard
        if against not in (None, label):
            references[label] = str(against)
    return references


def _kind(network: Network) -> tuple[str, str | None, int]:
    return network.net, network.defence, network.variant.members


def _masked(network: Network) -> bool:
    """Whether anything is missing in the network: neurons, or the channels of DC."""
    return network.variant.bottom is not None or network.variant.top is not None or bool(network.defects)


def effects_of(spec: RecipeSpec, numbers: Sequence[Number], results: Iterable[Result] = ()) -> list[Effect]:
    """The effects of a table, in its order.

    The interval of a difference of shares is Newcombe's, on the images of one seed: more seeds see the same images.
    Over several seeds it is widened to Student's t on their spread, with the smaller number of degrees of freedom; one
    seed says nothing about other training runs. Pairing, of seeds and of images, is not made use of, so that the
    intervals are rather too wide. That of a ratio of medians combines the two intervals as Newcombe does, on the
    logarithm; over several seeds it is Student's alone.

    Args:
        spec: the recipe.
        numbers: ours, as :func:`dcn_plugin.experiments.comparison.compare` or a record has them.
        results: the records behind them: the intervals of medians stand there.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10; Zou and
    Donner 2008, "Construction of confidence limits about effect measures", for its use beyond proportions.
    """
    effects, by_place, records = [], {(number.row, number.column): number for number in numbers}, list(results)
    chosen = references(spec)
    for number in numbers:
        base = by_place.get((chosen.get(number.row, ""), number.column))
        unit: Unit = "points" if is_rate(number.figure) else "factor"
        ours = None if base is None else _less(number.ours, base.ours, unit)
        if base is None or ours is None:
            continue
        low, high = _difference(number, base) if unit == "points" else _ratio(number, base, records)
        paper = _less(number.paper, base.paper, unit)
        inferred = paper is not None and (number.inferred or base.inferred)
        effects.append(Effect(number.row, base.row, number.column, unit, ours, low, high, paper, inferred))
    return effects


def _less(value: float | None, base: float | None, unit: Unit) -> float | None:
    """One number less its reference; None where one is missing, or a distance of zero has no ratio."""
    if value is None or base is None or (unit == "factor" and min(value, base) <= 0):
        return None
    return value - base if unit == "points" else math.log(value / base)


def _difference(variant: Number, base: Number) -> Interval:
    assert variant.ours is not None and base.ours is not None
    low, high = (100 * end for end in newcombe(_counts(variant), _counts(base)))
    over_seeds = _student((variant.spread, variant.seeds), (base.spread, base.seeds))
    if over_seeds is None:
        return low, high
    ours = variant.ours - base.ours
    return min(low, ours - over_seeds), max(high, ours + over_seeds)


def _counts(number: Number) -> tuple[int, int]:
    """(successes, images) of one seed."""
    assert number.ours is not None
    images = max(1, number.counted // number.seeds)
    return round(number.ours / 100 * images), images


def _ratio(variant: Number, base: Number, results: Sequence[Result]) -> Interval:
    assert variant.ours is not None and base.ours is not None
    ours = math.log(variant.ours / base.ours)
    spreads = [None if number.spread is None else number.spread / (number.ours or 1) for number in (variant, base)]
    over_seeds = _student((spreads[0], variant.seeds), (spreads[1], base.seeds))
    if over_seeds is not None:
        return ours - over_seeds, ours + over_seeds
    intervals = _median_interval(variant, results), _median_interval(base, results)
    if intervals[0] is None or intervals[1] is None:
        return _ANYTHING
    return difference_interval((math.log(variant.ours), math.log(base.ours)), (intervals[0], intervals[1]))


def _median_interval(number: Number, results: Sequence[Result]) -> Interval | None:
    """Logarithms of the interval that the record of a median distance holds; None for another figure."""
    for result in results:
        figures = result.figures
        if result.target == number.row and figures.get(number.figure) == number.ours:
            low, high = figures.get("distance_low"), figures.get("distance_high")
            if number.figure == "median_distance" and isinstance(low, float) and isinstance(high, float):
                return (math.log(low) if low > 0 else -math.inf), math.log(high)
    return None


def _student(first: tuple[float | None, int], second: tuple[float | None, int]) -> float | None:
    """Half the 95 % interval of a difference of two means over seeds; None where one is of a single seed."""
    if first[0] is None or second[0] is None:
        return None
    quantile = student_quantile(0.975, min(first[1], second[1]) - 1)
    return quantile * math.hypot(first[0] / math.sqrt(first[1]), second[0] / math.sqrt(second[1]))
