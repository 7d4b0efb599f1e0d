from __future__ import annotations

import csv
import io

from dcn_plugin.report import Table, records_csv, result_tables
from tests.toy_records import noise_record, record


def test_the_tables_hold_both_denominators_with_counts_and_intervals() -> None:
    by_title = {table.title: table for table in result_tables([record(), noise_record()])}
    assert list(by_title) == ["Clean accuracy", "The attack on its source", "Transfer attacks", "Gaussian noise"]
    assert by_title["Transfer attacks"].rows == (
        ("standard", "0.2", "50.0 %", "39.3–60.7 %", "40 / 80", "45.0 %", "35.6–54.8 %", "45 / 100"),
    )
    assert by_title["Clean accuracy"].rows == (
        ("source (attacked)", "95.0 %", "95 / 100"),
        ("standard", "90.0 %", "90 / 100"),
    )
    assert by_title["The attack on its source"].rows == (("source", "PGD", "0.2", "85 / 95", "0"),)


def test_image_sets_of_one_name_are_told_apart_by_their_hash() -> None:
    parts = [record(data_hash=digit * 64, eps=eps) for digit in "1a" for eps in (0.1, 0.2)]
    for shown in result_tables(parts):
        column = shown.headers.index("data")
        assert {row[column] for row in shown.rows} == {"toy/test (11111111)", "toy/test (aaaaaaaa)"}
    assert all("data" not in shown.headers for shown in result_tables([record(), record(eps=0.1)]))


def test_a_table_without_rows_is_left_out() -> None:
    assert [table.title for table in result_tables([noise_record()])] == ["Clean accuracy", "Gaussian noise"]


def test_several_runs_are_said_to_be_several() -> None:
    notes = [table.note for table in result_tables([record(seed=0), record(seed=7)])]
    assert "2 runs (seeds 0, 7)" in notes[0]


def test_text_columns_are_aligned() -> None:
    lines = Table("T", ("name", "n"), (("a", "1"), ("long name", "100")), "note").to_text().splitlines()
    assert lines == ["T", "name         n", "---------  ---", "a            1", "long name  100", "note"]


def test_markdown_escapes_the_bar() -> None:
    lines = Table("T", ("a|b", "n"), (("x|y", "1"),)).to_markdown().splitlines()
    assert lines == ["### T", "", "| a\\|b | n |", "| :-- | --: |", "| x\\|y | 1 |"]


def test_csv_has_one_row_a_record_and_plain_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(records_csv([record(), noise_record()]))))
    assert len(rows) == 2
    assert (rows[0]["n_defended"], rows[0]["n_counted"], rows[0]["defense_rate"]) == ("40", "80", "0.5")
    assert float(rows[0]["defense_low"]) < 0.5 < float(rows[0]["defense_high"])
    assert rows[1]["source"] == ""
    assert records_csv([]) == "\n"
