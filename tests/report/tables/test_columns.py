from __future__ import annotations

from dcn_plugin.report import cells
from dcn_plugin.report.aggregate import Cell
from dcn_plugin.report.tables.columns import (
    ATTACK,
    DATA,
    NETWORK,
    ROUNDING,
    SOURCE,
    cell_table,
    context_of,
    counts,
    only,
    rate_table,
    varied,
)
from tests.toy_records import record

EMPTY = {"n_counted": 0, "n_defended": 0}


def some(*changes: dict[str, object]) -> list[Cell]:
    return cells([record(**change) for change in changes], protocol="transfer")


def test_a_column_is_shown_where_it_tells_rows_apart_and_named_in_the_note_where_it_does_not() -> None:
    rows = some({}, {"source": "other"}, {"source": "other", "rounding": "8bit"})
    assert varied(rows, ATTACK, DATA, ROUNDING, SOURCE) == [ROUNDING, SOURCE]
    assert only(rows, SOURCE, ATTACK) == "Attack: PGD."
    assert only(some({"source": None, "n_source_correct": None, "n_source_fooled": None}), SOURCE) == ""


def test_settings_stand_in_a_fixed_order_around_the_relation() -> None:
    rows = some({"relation": "other network"}, {"source": "other", "attack": "FGSM", "eps": 0.1})

    def headers(**settings: object) -> list[str]:
        return [column.header for column in context_of(rows, strength="eps", **settings)]  # type: ignore[arg-type]

    assert headers(relation="source is") == ["network", "source", "source is", "attack", "eps"]
    assert headers(relation="source is", source=False) == ["network", "source is", "attack", "eps"]
    assert headers() == ["network", "source", "attack", "eps"]
    assert [column.header for column in context_of(rows[1:], strength=None, relation="source is")] == ["network"]


def test_names_stand_to_the_left_and_numbers_to_the_right() -> None:
    table = cell_table("T", some({}), [NETWORK, *counts("held")], "One.", "", "Two.")
    assert table.align == "lrrrrrr"
    assert table.rows == (("standard", "50.0 %", "39.3–60.7 %", "40 / 80", "45.0 %", "35.6–54.8 %", "45 / 100"),)
    assert table.note == "One. Two."


def test_rates_come_with_what_their_intervals_are_and_why_some_have_none() -> None:
    table = rate_table("T", some({}, {"target": "lost", **EMPTY}), [NETWORK], "Note.")
    assert table.note.startswith("Note. Intervals are Wilson 95 %;")
    assert table.note.endswith("–: no image counts (lost).")
