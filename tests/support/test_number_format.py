from __future__ import annotations

import pytest

from dcn_plugin.support.number_format import listed, number, value


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (8 / 255, "8/255"),
        (0.5 / 255, "0.5/255"),
        (0.2, "0.2"),
        (0.0, "0"),
        (25000.0, "25000"),
        (1.0, "1"),
        (0.123456, "0.1235"),
        (1e-5, "1e-05"),
        (None, "–"),
    ],
)
def test_a_strength_is_written_as_a_person_writes_it(figure: float | None, text: str) -> None:
    assert number(figure) == text


def test_any_plain_value_has_a_text() -> None:
    assert [value(scalar) for scalar in (None, True, False, "a", 3)] == ["–", "yes", "no", "a", "3"]


def test_long_lists_are_cut_and_say_by_how_much() -> None:
    assert listed(["a", "b", "a"]) == "a, b"
    assert listed("abcd", most=2) == "a, b and 2 more"
