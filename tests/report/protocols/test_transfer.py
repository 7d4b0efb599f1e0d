from __future__ import annotations

from tests.report.tables_by_title import column, table
from tests.toy_records import matrix_records, record


def test_transfer_rows_name_source_attack_and_relation_where_they_differ() -> None:
    shown = table("Transfer attacks", *matrix_records(), *matrix_records(attack="FGSM"))
    assert shown.headers[:5] == ("network", "source", "source is", "attack", "eps")
    assert shown.rows[0][:6] == ("vgg", "vgg", "same network", "PGD", "0.2", "0.0 %")
    assert shown.rows[7][:6] == ("standard", "resnet", "other network", "FGSM", "0.2", "50.0 %")


def test_what_does_not_differ_stands_in_the_note() -> None:
    assert table("Transfer attacks", record()).note.startswith("Source: source. Attack: PGD. ")


def test_the_matrix_has_sources_down_and_targets_across_and_marks_the_white_box() -> None:
    shown = table("Defence rate: PGD, eps 0.2", *matrix_records())
    assert shown.headers == ("source", "vgg", "standard")
    assert shown.rows == (("vgg", "0.0 (w)", "50.0"), ("resnet", "50.0", "50.0"))
    assert "white-box" in shown.note
    assert table("Accuracy: PGD, eps 0.2", *matrix_records()).rows[1] == ("resnet", "45.0", "45.0")


def test_a_pair_that_was_not_measured_is_a_dash_in_the_matrix() -> None:
    assert table("Defence rate: PGD, eps 0.2", *matrix_records()[:-1]).rows[1] == ("resnet", "50.0", "–")


def test_gray_boxes_are_marked_too() -> None:
    gray = record(source="vgg", relation="other masks")
    shown = table("Defence rate: PGD, eps 0.2", gray, record(source="resnet", relation="other network"))
    assert column(shown, "standard") == ["50.0 (g)", "50.0"]


def test_a_white_box_of_one_run_marks_the_cell() -> None:
    known = {("a", 1): "same network"}
    runs = [
        record(source=source, target="a", seed=seed, relation=known.get((source, seed), "other network"))
        for source in ("a", "b")
        for seed in (0, 1)
    ]
    assert table("Defence rate: PGD, eps 0.2", *runs).rows[0][1].endswith("(w)")
    assert column(table("Transfer attacks", *runs), "source is")[0] == "other network / same network"


def test_an_attacked_ensemble_has_its_clean_accuracy_whatever_it_holds() -> None:
    rows = table("Clean accuracy", record(source="a+b", relation="same network")).rows
    assert [row[0] for row in rows] == ["a+b (attacked)", "standard"]


def test_what_a_targets_answers_cost_stands_beside_the_source_that_was_trained_on_them() -> None:
    asked = record(source="asked", figures={"target_queries": 4000})
    shown = table("The attack on its source", asked, record(source="plain"))
    assert column(shown, "target queries") == ["4000", "–"]
    assert "asked about to train" in shown.note
    assert "target queries" not in table("The attack on its source", record()).headers
