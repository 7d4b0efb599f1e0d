from __future__ import annotations

from dcn_plugin.report.protocols.curve import PART
from tests.report.tables_by_title import column, table
from tests.toy_records import whitebox_record


def curve_record(**changes: object) -> object:
    figures = {"n_not_fooled": changes.pop("never", 0), "median_length": 0.4}
    settings = {"steps": 100}
    return whitebox_record(protocol="curve", attack="DDN", attack_settings=settings, figures=figures, **changes)


def test_every_radius_has_a_row_with_the_accuracy_that_is_left() -> None:
    records = [curve_record(eps=0.5), curve_record(eps=1.0, n_defended=9, n_correct=9)]
    shown = table("Robust accuracy over eps", *records)
    assert column(shown, "eps") == ["0.5", "1"]
    assert column(shown, "robust accuracy") == ["30.0 %", "9.0 %"]
    assert "never fooled" not in shown.headers


def test_images_that_the_attack_fooled_at_no_distance_are_shown() -> None:
    shown = table("Robust accuracy over eps", curve_record(eps=0.5, never=7), curve_record(eps=1.0, never=7))
    assert column(shown, "never fooled") == ["7", "7"]
    assert "the attack's failure" in shown.note


def test_the_curve_is_drawn_where_there_are_two_radii() -> None:
    records = [curve_record(eps=eps) for eps in (0.5, 1.0)]
    (figure,) = PART.figures(records)  # type: ignore[arg-type]
    assert "at 0.5" in figure.alt and "at 1" in figure.alt
    assert PART.figures(records[:1]) == []  # type: ignore[arg-type]
