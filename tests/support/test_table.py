from __future__ import annotations

import pytest

from dcn_plugin.support.table import aligned, markdown


def test_columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces() -> None:
    rows = [["name", "n"], ["a", "10"], ["longest", ""]]
    assert aligned(rows) == ["name     n", "a        10", "longest"]
    assert aligned(rows, "lr") == ["name      n", "a        10", "longest"]


def test_a_letter_for_each_column_or_none_at_all() -> None:
    with pytest.raises(ValueError, match="zip"):
        aligned([["a"]], "lr")


def test_markdown_has_numbers_on_the_right_and_keeps_bars_in_their_cells() -> None:
    lines = markdown(["", "b|c"], [["x", "1"], ["|", "2"]])
    assert lines == ["|  | b\\|c |", "| :-- | --: |", "| x | 1 |", "| \\| | 2 |"]
    assert markdown(["a", "b"], [], "rl") == ["| a | b |", "| --: | :-- |"]
