"""The few statistics that records, reports and comparisons need; the base install has no scipy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from dcn_plugin.errors import SpecError

__all__ = [
    "Interval",
    "Spread",
    "difference_interval",
    "median_interval",
    "newcombe",
    "sign_test",
    "spread",
    "student_quantile",
    "wilson",
]

Interval = tuple[float, float]


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
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


def newcombe(first: tuple[int, int], second: tuple[int, int]) -> Interval:
    """95 % interval of the difference of two independent proportions, the first less the second.

    Args:
        first: (successes, trials).
        second: likewise.

    Returns:
        (low, high) in [-1, 1].

    Source: Newcombe 1998, method 10: the Wilson intervals of both, combined by squares.
    """
    shares = (first[0] / first[1], second[0] / second[1])
    return difference_interval(shares, (wilson(*first), wilson(*second)))


def difference_interval(values: tuple[float, float], intervals: tuple[Interval, Interval]) -> Interval:
    """Interval of the difference of two independent figures, the first less the second, from those of the two."""
    (a, b), ((a_low, a_high), (b_low, b_high)) = values, intervals
    return a - b - math.hypot(a - a_low, b_high - b), a - b + math.hypot(a_high - a, b - b_low)


def sign_test(more: int, fewer: int) -> float:
    """One-sided exact sign test: the probability that of ``more + fewer`` fair coins at least ``more`` show heads."""
    coins = more + fewer
    ways = tail = 1  # all heads
    for heads in range(coins, more, -1):
        ways = ways * heads // (coins - heads + 1)
        tail += ways
    return tail / (1 << coins)  # integers up to here: exact for any count


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: in [0.5, 1).
        freedom: degrees of freedom, >= 1.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4; P(|t| < x) is a finite sum in the angle atan(x / sqrt(n)).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, freedom) < 2 * probability - 1 else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(abs(t) < sqrt(freedom) * tan(angle))."""
    odd = freedom % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    share = math.sin(angle) * total
    return 2 / math.pi * (angle + share) if odd else share


def median_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
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
