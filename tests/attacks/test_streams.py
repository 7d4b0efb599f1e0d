from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.attacks import SampleStreams
from dcn_plugin.errors import SpecError


@given(first=st.integers(0, 20), count=st.integers(1, 6))
def test_a_samples_numbers_depend_on_its_place_not_on_its_batch(first: int, count: int) -> None:
    like = torch.empty(30, 2, 3)
    whole = SampleStreams("test", 5, range(30)).normal(like)
    part = SampleStreams("test", 5, range(first, first + count)).normal(like[:count])
    assert torch.equal(part, whole[first : first + count])


def test_seed_purpose_and_place_each_give_other_numbers() -> None:
    like = torch.empty(1, 8)
    draws = [
        SampleStreams(purpose, seed, [index]).uniform(like, 0, 1)
        for purpose, seed, index in (("a", 0, 0), ("b", 0, 0), ("a", 1, 0), ("a", 0, 1))
    ]
    assert all(not torch.equal(x, y) for i, x in enumerate(draws) for y in draws[:i])


def test_a_stream_goes_on_from_draw_to_draw() -> None:
    streams = SampleStreams("test", 0, range(3))
    assert not torch.equal(streams.normal(torch.empty(3, 4)), streams.normal(torch.empty(3, 4)))


def test_the_numbers_have_the_distribution_that_was_asked_for() -> None:
    like = torch.empty(200, 100, dtype=torch.float64)
    normal = SampleStreams("test", 1, range(200)).normal(like)
    uniform = SampleStreams("test", 1, range(200)).uniform(like, -0.5, 1.5)
    # 20,000 draws: five standard errors.
    assert abs(normal.mean()) < 5 / 20_000**0.5
    assert abs(normal.std() - 1) < 5 / 40_000**0.5
    assert uniform.min() >= -0.5
    assert uniform.max() < 1.5
    assert abs(uniform.mean() - 0.5) < 5 * (2 / 12**0.5) / 20_000**0.5
    assert normal.dtype == torch.float64


def test_the_numbers_are_the_same_for_ever() -> None:
    drawn = SampleStreams("golden", 7, [3]).uniform(torch.empty(1, 3, dtype=torch.float64), 0, 1)
    torch.testing.assert_close(drawn, torch.tensor([GOLDEN], dtype=torch.float64), rtol=0, atol=0)


GOLDEN = [0.14787127295185698, 0.3039753027004751, 0.5443191503427673]


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(SpecError, match="seed"):
        SampleStreams("test", seed, range(2))
