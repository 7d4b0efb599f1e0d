from __future__ import annotations

from tests.report.tables_by_title import column, table
from tests.toy_records import whitebox_record


def test_whitebox_shows_the_robust_accuracy_of_all_images() -> None:
    shown = table("White-box attacks", whitebox_record(), whitebox_record(target="p=0.1", n_defended=9, n_correct=9))
    assert column(shown, "robust accuracy") == ["30.0 %", "9.0 %"]
    assert column(shown, "zero gradient") == ["1 / 100", "1 / 100"]
    assert "source" not in shown.headers


def test_passes_of_the_attack_are_shown_for_each_image_where_they_were_counted() -> None:
    counted = whitebox_record(n_forward_passes=2190, n_backward_passes=2000)
    shown = table("White-box attacks", counted, whitebox_record(target="old"))
    assert column(shown, "forward passes") == ["21.9", "–"]
    assert column(shown, "backward passes") == ["20.0", "–"]
    assert "forward passes" not in table("White-box attacks", whitebox_record()).headers
