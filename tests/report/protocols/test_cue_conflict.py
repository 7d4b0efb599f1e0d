from __future__ import annotations

from dcn_plugin.report import findings
from tests.report.tables_by_title import table
from tests.toy_records import cue_record


def test_shape_bias_comes_with_its_interval_and_counts() -> None:
    shown = table("Cue conflict", cue_record(20, 60), cue_record(0, 0, target="blind"))
    assert shown.rows == (
        ("standard", "25.0 %", "12.5–25.0 %", "20", "60", "100"),
        ("blind", "–", "–", "0", "0", "100"),
    )
    assert "–: no image counts (blind)." in shown.note


def test_shape_bias_is_compared_in_points() -> None:
    sentences = findings([cue_record(20, 60), cue_record(40, 40, target="p=0.1")], baseline="standard")
    assert sentences == ["Shape bias: standard 25.0 %; p=0.1 50.0 % (+25.0 points)."]
