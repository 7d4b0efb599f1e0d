"""The README's table is that of the record, and every number in it is the record's."""

from __future__ import annotations

import json

import pytest

from docs._build.readme_table import BEGIN, COLUMNS, END, README, RECORD, ROWS, readme_table, with_table


def test_the_readme_shows_the_committed_record() -> None:
    text = README.read_text(encoding="utf-8")
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert with_table(text, record) == text, "python -m docs._build.readme_table"
    assert text.index(BEGIN) < text.index(END) < text.index("## Install")


def test_every_cell_is_ours_and_the_papers_number_and_the_rest_says_how_it_was_made() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    record["spec"]["seeds"] = [3, 4]
    record["spec"]["scale"]["width"] = 99
    for number in record["spec"]["numbers"]:
        if number["row"] == "0.3-Bottom" and number["column"] == "pgd16":
            number.update(ours=12.345, paper=67.8)
    text = readme_table(record)
    rows = [
        line.strip("|").split("|") for line in text.splitlines() if line.startswith("| defective") or "ResNet" in line
    ]
    assert [row[0].strip() for row in rows[: len(ROWS)]] == list(ROWS.values())
    assert rows[2][list(COLUMNS).index("pgd16") + 1].strip() == "12 (68)"
    for part in ("width 99", "2 seeds", "DenseNet-121", "1,000 test images", "350 epochs"):
        assert part in text


def test_a_record_without_a_row_is_no_empty_cell() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    record["spec"]["numbers"] = [number for number in record["spec"]["numbers"] if number["row"] != "0.1-Bottom"]
    with pytest.raises(KeyError, match=r"0\.1-Bottom"):
        readme_table(record)


def test_small_networks_pay_more_clean_accuracy_than_the_papers_as_the_text_says() -> None:
    numbers = json.loads(RECORD.read_text(encoding="utf-8"))["spec"]["numbers"]
    clean = {number["row"]: number for number in numbers if number["column"] == "clean"}
    standard, *defective = (clean[row] for row in ROWS)
    for row in defective:
        assert standard["ours"] - row["ours"] > standard["paper"] - row["paper"]
