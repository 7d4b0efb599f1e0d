from __future__ import annotations

import statistics
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats import t as student

from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import spread, wilson
from dcn_plugin.support.statistics import newcombe, sign_test, student_quantile

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts=counts, confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_agrees_with_scipys(counts: tuple[int, int], confidence: float) -> None:
    expected = binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert wilson(*counts, confidence=confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(counts=counts)
def test_wilson_contains_the_share_and_stays_within_zero_and_one(counts: tuple[int, int]) -> None:
    low, high = wilson(*counts)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1
    assert low < high


@pytest.mark.parametrize("bad", [(1, 0), (-1, 5), (6, 5)])
def test_a_proportion_of_nothing_has_no_interval(bad: tuple[int, int]) -> None:
    with pytest.raises(SpecError, match="interval"):
        wilson(*bad)


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_spread_is_mean_sample_deviation_and_range(values: list[float]) -> None:
    found = spread(values)
    assert found.mean == pytest.approx(sum(values) / len(values))
    assert found.std == pytest.approx(statistics.stdev(values))
    assert (found.low, found.high, found.count) == (min(values), max(values), len(values))


def test_one_run_has_no_deviation_and_no_run_no_mean() -> None:
    assert spread([0.5]).std is None
    with pytest.raises(SpecError):
        spread([])


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_interval_of_a_difference_is_that_of_newcombes_paper(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    """Newcombe 1998, table II, method 10."""
    assert newcombe(one, other) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500), st.integers(1, 500), st.data())
def test_the_interval_holds_the_difference_and_turns_over_with_its_parts(n: int, m: int, data: st.DataObject) -> None:
    one, other = (data.draw(st.integers(0, n)), n), (data.draw(st.integers(0, m)), m)
    low, high = newcombe(one, other)
    assert -1 - 1e-12 <= low <= one[0] / n - other[0] / m <= high <= 1 + 1e-12
    assert newcombe(other, one) == pytest.approx((-high, -low))


@given(more=st.integers(0, 40), fewer=st.integers(0, 40))
def test_the_sign_test_is_the_tail_of_the_binomial_distribution(more: int, fewer: int) -> None:
    coins = more + fewer
    assert sign_test(more, fewer) == pytest.approx(sum(comb(coins, k) for k in range(more, coins + 1)) / 2**coins)


def test_the_sign_test_stays_exact_for_counts_whose_powers_of_two_are_no_floats() -> None:
    assert sign_test(2500, 2500) == pytest.approx(0.5056, abs=1e-4)
    assert sign_test(0, 5000) == 1
    assert sign_test(5000, 0) == 0


@given(probability=st.floats(0.5, 0.9995), freedom=st.integers(1, 60))
def test_students_quantile_is_scipys(probability: float, freedom: int) -> None:
    assert student_quantile(probability, freedom) == pytest.approx(
        student.ppf(probability, freedom), rel=1e-9, abs=1e-12
    )
