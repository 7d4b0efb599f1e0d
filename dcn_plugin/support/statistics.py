"""The few statistics that records and reports need."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from dcn_plugin.errors import SpecError

__all__ = ["Spread", "median_interval", "spread", "wilson"]


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Args:
        successes: 0 .. ``trials``.
        trials: >= 1.
        confidence: in (0, 1).

    Returns:
        (low, high), shares in [0, 1].

    Raises:
        SpecError: an argument is out of range.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if not 0 <= successes <= trials or trials < 1 or not 0 < confidence < 1:
        raise SpecError(
            "This proportion has no interval.",
            (successes, trials, confidence),
            "0 <= successes <= trials, trials >= 1, 0 < confidence < 1",
        )
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    # At 0 and at all the bound is exact; rounding must not move it off.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a median that assumes nothing of the distribution: two of the values themselves.

    Between the k-th smallest and the k-th largest value lies the median with a probability of at least ``confidence``,
    for the largest such k; with fewer than six values (at 95 %) no k has that, and the extremes are returned.

    Raises:
        SpecError: there is no value.

    Source: order statistics and the binomial distribution (David and Nagaraja 2003, section 7.1).
    """
    if not values:
        raise SpecError("There is nothing to take a median of.", (), "at least one value")
    ordered, count = sorted(values), len(values)
    k, missed = 1, Fraction(0)
    while 2 * k < count:
        # P(fewer than k + 1 values lie below the median) of one side.
        missed += Fraction(math.comb(count, k), 2**count)
        if 2 * (missed + Fraction(1, 2**count)) > 1 - confidence:
            break
        k += 1
    return ordered[k - 1], ordered[count - k]


@dataclass(frozen=True)
class Spread:
    """A figure over several training runs.

    Args:
        mean: arithmetic mean.
        std: sample standard deviation, None for a single run.
        low: smallest value.
        high: largest value.
        count: number of runs.
    """

    mean: float
    std: float | None
    low: float
    high: float
    count: int


def spread(values: Sequence[float]) -> Spread:
    """Summarise one figure over runs.

    Raises:
        SpecError: there is no value.
    """
    if not values:
        raise SpecError("There is nothing to average.", (), "at least one value")
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, min(values), max(values), len(values))
