from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch

from dcn_plugin.errors import PretrainedError, SpecError
from dcn_plugin.support.arguments import check_choice, check_count, check_rules, is_count, is_number, plain

Mode = Literal["low", "high"]


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), torch.tensor(3)])
def test_a_count_is_taken_in_every_form(value: Any) -> None:
    assert check_count(value, "batch size") == 3
    assert type(check_count(value, "batch size")) is type(plain(value)) is int


@pytest.mark.parametrize("value", [0, True, 2.0, "3", None, torch.ones(2)])
def test_what_is_no_count_is_refused_by_name(value: Any) -> None:
    with pytest.raises(SpecError, match=r"^The batch size is not usable\. .*an int >= 1"):
        check_count(value, "batch size")


def test_true_and_text_are_no_numbers() -> None:
    assert is_number(0.5) and is_number(-1) and not is_number(True) and not is_number("1")
    assert is_count(0) and not is_count(0, least=1) and not is_count(1.0) and not is_count(False)


def test_another_choice_is_refused_with_those_that_there_are() -> None:
    check_choice("mode", "low", Mode)
    with pytest.raises(SpecError, match=r"Unknown mode\. .*'low', 'high'"):
        check_choice("mode", "middle", Mode)


def test_the_first_rule_that_is_broken_names_its_value() -> None:
    values = {"eps": 0.1, "steps": 0, "size": 9}
    rules = {"eps": (True, "a number"), "steps": (False, "an int >= 1"), "size": (False, "an int < 9")}
    with pytest.raises(PretrainedError, match=r"^The steps of {it} is not usable\. Got: 0\. Allowed: an int >= 1"):
        check_rules("The {name} of {it} is not usable.", values, rules, error=PretrainedError)
    check_rules("The {name} is not usable.", values, {"eps": (True, "a number")})
