from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import spread, wilson

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
