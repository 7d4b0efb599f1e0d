from __future__ import annotations

import pytest

from dcn_plugin.evaluate import Result
from dcn_plugin.report import Report
from tests.report.tables_by_title import table
from tests.toy_records import (
    check_record,
    cue_record,
    distance_record,
    noise_record,
    record,
    shuffle_record,
    tapm_record,
    whitebox_record,
)


def test_a_protocol_that_nobody_knows_is_shown_with_its_counts_and_figures() -> None:
    shown = table("Protocol blur", noise_record(protocol="blur", attack="blur", figures={"radius": 3, "kind": "box"}))
    assert shown.rows == (
        ("standard", "0.2", "50.0 %", "39.3–60.7 %", "40 / 80", "45.0 %", "35.6–54.8 %", "45 / 100", "3", "box"),
    )


NOBODY: dict[str, object] = {"n_clean_correct": 0, "n_counted": 0, "n_defended": 0, "n_correct": 0}
EMPTY = [
    record(**NOBODY),
    noise_record(**NOBODY),
    whitebox_record(**NOBODY),
    tapm_record(**NOBODY),
    shuffle_record(**NOBODY),
    noise_record(**NOBODY, protocol="blur"),
    noise_record(**NOBODY, protocol="stylized", attack="stylized"),
    distance_record(None, n_clean_correct=0, n_failed_starts=0),
    check_record("noise", None, n_clean_correct=0, n_counted=0),
    cue_record(0, 0),
]


@pytest.mark.parametrize("result", EMPTY, ids=lambda result: result.protocol)
def test_a_record_without_a_counted_image_is_flagged_and_breaks_nothing(result: Result) -> None:
    report = Report(title="T", results=[result], baseline="standard")
    text = report.to_text()
    if result.protocol != "sanity":
        assert "–" in text
        assert "Read with care" in text
    assert "nan" not in text
    assert report.to_markdown()
