from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dcn_plugin.evaluate.protocols.paired_tests import not_weaker, only_one, stronger
from dcn_plugin.support.statistics import sign_test


def attacks(both: int, only_first: int, only_second: int, neither: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which images count (all), and which the first and the second attack wins."""
    groups = torch.repeat_interleave(torch.arange(4), torch.tensor([both, only_first, only_second, neither]))
    return torch.ones(len(groups), dtype=torch.bool), groups < 2, (groups == 0) | (groups == 2)


def test_only_one_counts_the_images_on_which_two_attacks_differ() -> None:
    _, first, second = attacks(both=4, only_first=3, only_second=2, neither=1)
    assert only_one(first, second) == (3, 2)


@pytest.mark.parametrize(
    ("both", "only_first", "only_second", "neither", "passed"),
    [
        (20, 0, 5, 10, False),  # five against none: 3 %
        (20, 0, 4, 10, True),  # 6 %
        (20, 30, 5, 10, True),
        (0, 0, 0, 35, None),  # neither attack does anything
        (0, 0, 4, 0, None),  # too few images to tell
    ],
)
def test_the_weaker_attack_is_found_by_more_than_chance(
    both: int, only_first: int, only_second: int, neither: int, passed: bool | None
) -> None:
    right, first, second = attacks(both, only_first, only_second, neither)
    verdict = not_weaker(right, white=first, black=second)
    assert verdict.passed is passed
    assert verdict.figures == {
        "n_white": both + only_first,
        "n_black": both + only_second,
        "n_only_white": only_first,
        "n_only_black": only_second,
        "p_weaker": sign_test(only_second, only_first),
    }


@pytest.mark.parametrize(
    ("both", "only_first", "only_second", "neither", "passed"),
    [
        (10, 5, 0, 20, True),  # five more than the other: 3 %
        (10, 0, 5, 20, False),  # five fewer
        (10, 2, 0, 20, False),  # the other does nearly all that the first does
        (3, 2, 0, 20, None),  # too few to tell
        (0, 0, 0, 35, None),
        (90, 1, 0, 4, True),  # nothing left to be better at
        (1, 3, 0, 0, None),  # too few images
    ],
)
def test_the_stronger_attack_has_to_show_it(
    both: int, only_first: int, only_second: int, neither: int, passed: bool | None
) -> None:
    right, first, second = attacks(both, only_first, only_second, neither)
    verdict = stronger(right, attack=first, noise=second)
    assert verdict.passed is passed
    assert verdict.figures["p_stronger"] == sign_test(only_first, only_second)


def test_images_that_do_not_count_leave_an_attack_nothing_to_win() -> None:
    right, first, second = attacks(both=0, only_first=4, only_second=0, neither=30)
    right[4:] = False
    assert stronger(right, attack=first, noise=second).passed is None
