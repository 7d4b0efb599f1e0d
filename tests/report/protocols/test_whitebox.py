from __future__ import annotations

from tests.report.tables_by_title import column, table
from tests.toy_records import whitebox_record


def test_whitebox_shows_the_robust_accuracy_of_all_images() -> None:
    shown = table("White-box attacks", whitebox_record(), whitebox_record(target="p=0.1", n_defended=9, n_correct=9))
    assert column(shown, "robust accuracy") == ["30.0 %", "9.0 %"]
    assert column(shown, "zero gradient") == ["1 / 100", "1 / 100"]
    assert "source" not in shown.headers
