"""The table of every protocol, and what a record without a figure looks like in it."""

from __future__ import annotations

import pytest

from dcn_plugin.evaluate import Result
from dcn_plugin.report import Report, Table, result_tables
from tests.toy_records import (
    check_record,
    cue_record,
    distance_record,
    matrix_records,
    noise_record,
    record,
    shuffle_record,
    tapm_record,
    whitebox_record,
)


def table(title: str, *results: Result) -> Table:
    return {table.title: table for table in result_tables(results)}[title]


def column(table: Table, header: str) -> list[str]:
    return [row[table.headers.index(header)] for row in table.rows]


def test_transfer_rows_name_source_attack_and_relation_where_they_differ() -> None:
    found = table("Transfer attacks", *matrix_records(), *matrix_records(attack="FGSM"))
    assert found.headers[:5] == ("network", "source", "source is", "attack", "eps")
    assert found.rows[0][:6] == ("vgg", "vgg", "same network", "PGD", "0.2", "0.0 %")
    assert found.rows[7][:6] == ("standard", "resnet", "other network", "FGSM", "0.2", "50.0 %")


def test_what_does_not_differ_stands_in_the_note() -> None:
    assert table("Transfer attacks", record()).note.startswith("Source: source. Attack: PGD. ")


def test_the_matrix_has_sources_down_and_targets_across_and_marks_the_white_box() -> None:
    found = table("Defence rate: PGD, eps 0.2", *matrix_records())
    assert found.headers == ("source", "vgg", "standard")
    assert found.rows == (("vgg", "0.0 (w)", "50.0"), ("resnet", "50.0", "50.0"))
    assert "white-box" in found.note
    assert table("Accuracy: PGD, eps 0.2", *matrix_records()).rows[1] == ("resnet", "45.0", "45.0")


def test_a_pair_that_was_not_measured_is_a_dash_in_the_matrix() -> None:
    assert table("Defence rate: PGD, eps 0.2", *matrix_records()[:-1]).rows[1] == ("resnet", "50.0", "–")


def test_gray_boxes_are_marked_too() -> None:
    gray = record(source="vgg", relation="other masks")
    found = table("Defence rate: PGD, eps 0.2", gray, record(source="resnet", relation="other network"))
    assert column(found, "standard") == ["50.0 (g)", "50.0"]


def test_a_white_box_of_one_run_marks_the_cell() -> None:
    known = {("a", 1): "same network"}
    runs = [
        record(source=source, target="a", seed=seed, relation=known.get((source, seed), "other network"))
        for source in ("a", "b")
        for seed in (0, 1)
    ]
    assert table("Defence rate: PGD, eps 0.2", *runs).rows[0][1].endswith("(w)")
    assert column(table("Transfer attacks", *runs), "source is")[0] == "other network / same network"


def test_tapm_shows_the_closest_relation_of_its_sources_where_records_say_it() -> None:
    title = "Worst of all transfer attacks (TAPM)"
    found = table(title, tapm_record(relation="same network"), tapm_record(target="p=0.1", relation="other network"))
    assert column(found, "closest source is") == ["same network", "other network"]
    assert "white-box" in found.note
    assert "closest source is" not in table(title, tapm_record()).headers


def test_an_attacked_ensemble_has_its_clean_accuracy_whatever_it_holds() -> None:
    rows = table("Clean accuracy", record(source="a+b", relation="same network")).rows
    assert [row[0] for row in rows] == ["a+b (attacked)", "standard"]


def test_tapm_names_the_worst_single_attack_and_what_it_was_the_worst_of() -> None:
    found = table("Worst of all transfer attacks (TAPM)", tapm_record())
    assert found.rows[0][1:] == ("0.2", "90.0 %", "30.0 %", "21.9–39.6 %", "30 / 100", "35.0 %", "vgg / PGD")
    assert "Sources: vgg, resnet." in found.note
    assert "PGD(eps=8/255, steps=20); FGSM(eps=0.2)" in found.note


def test_tapm_keeps_the_settings_where_two_attacks_share_a_name() -> None:
    settings = {"sources": "vgg", "attacks": "PGD(steps=20); PGD(steps=40)"}
    result = tapm_record(attack_settings=settings, figures={"worst_single": "vgg / PGD(steps=40)"})
    found = table("Worst of all transfer attacks (TAPM)", result)
    assert found.rows[0][-2:] == ("–", "vgg / PGD(steps=40)")


def test_whitebox_shows_the_robust_accuracy_of_all_images() -> None:
    found = table("White-box attacks", whitebox_record(), whitebox_record(target="p=0.1", n_defended=9, n_correct=9))
    assert column(found, "robust accuracy") == ["30.0 %", "9.0 %"]
    assert column(found, "zero gradient") == ["1 / 100", "1 / 100"]
    assert "source" not in found.headers


def test_both_kinds_of_noise_share_a_table_that_names_them() -> None:
    found = table("Gaussian noise", noise_record(), noise_record(attack="gaussian-clipped"))
    assert column(found, "attack") == ["gaussian-plain", "gaussian-clipped"]
    assert "level" in found.headers
    assert "eps" in table("Gaussian noise", noise_record(attack="gaussian-clipped")).headers


def test_shuffles_are_told_apart_by_k_and_not_by_the_attack() -> None:
    found = table("Patch shuffle", *(shuffle_record(k=k) for k in (2, 4, 8)))
    assert column(found, "k") == ["2", "4", "8"]
    assert "attack" not in found.headers
    assert "at least 0.99" in found.note


def test_amplitude_swap_shows_how_often_the_amplitude_won() -> None:
    swap = noise_record(protocol="amplitude-swap", attack="amplitude swap", eps=None, attack_settings={},
                        figures={"n_amplitude_class": 20, "amplitude_class_rate": 0.25})  # fmt: skip
    assert column(table("Amplitude swap", swap), "amplitude's class") == ["25.0 %"]


def test_shape_bias_comes_with_its_interval_and_counts() -> None:
    found = table("Cue conflict", cue_record(20, 60), cue_record(0, 0, target="blind"))
    assert found.rows == (
        ("standard", "25.0 %", "12.5–25.0 %", "20", "60", "100"),
        ("blind", "–", "–", "0", "0", "100"),
    )
    assert "–: no image counts (blind)." in found.note


def test_distances_of_all_attacks_share_a_table_and_failed_starts_have_none() -> None:
    found = table(
        "Distance to the nearest adversarial image",
        distance_record(2e-4),
        distance_record(4e-4, seed=1),
        distance_record(None, target="lost"),
        distance_record(3e-4, protocol="cw", attack="CW"),
    )
    assert column(found, "median") == ["3.00e-04 ± 1.4e-04", "–", "3.00e-04"]
    assert column(found, "95 %") == ["1.60e-04–5.00e-04", "–", "2.40e-04–3.75e-04"]
    assert column(found, "found / right when clean") == ["176 / 180", "0 / 90", "88 / 90"]
    assert column(found, "failed starts") == ["4", "90", "2"]
    assert column(found, "attack") == ["BoundaryAttack", "BoundaryAttack", "CW"]
    assert "–: no image counts (lost)." in found.note


def test_budgets_of_one_attack_are_rows_of_their_own() -> None:
    results = [distance_record(attack_settings={"queries": queries}) for queries in (1000, 5000)]
    found = table("Distance to the nearest adversarial image", *results)
    assert column(found, "attack") == ["BoundaryAttack (queries 1000)", "BoundaryAttack (queries 5000)"]


def test_a_check_passes_fails_or_is_unknown() -> None:
    results = [check_record("noise", True), check_record("radius", False), check_record("black-box", None)]
    found = table("Checks for gradient masking", *results)
    assert column(found, "verdict") == ["pass", "FAIL", "unknown"]
    assert column(found, "figures")[0] == "one step 12, share 0.1235"


def test_one_failure_in_several_runs_is_a_failure() -> None:
    found = table("Checks for gradient masking", check_record("noise", True), check_record("noise", False, seed=1))
    assert column(found, "verdict") == ["FAIL"]
    assert column(found, "runs passed") == ["1 / 2"]


def test_verdicts_of_several_networks_stand_side_by_side() -> None:
    results = [check_record("noise", True), check_record("radius", False), check_record("noise", None, target="other")]
    found = table("Verdicts", *results)
    assert found.rows == (("standard", "pass", "FAIL"), ("other", "unknown", "–"))


def test_a_protocol_that_nobody_knows_is_shown_with_its_counts_and_figures() -> None:
    found = table("Protocol blur", noise_record(protocol="blur", attack="blur", figures={"radius": 3, "kind": "box"}))
    assert found.rows == (
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
