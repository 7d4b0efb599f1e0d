from __future__ import annotations

from dcn_plugin.report import findings
from tests.report.tables_by_title import column, table
from tests.toy_records import distance_record


def test_distances_of_all_attacks_share_a_table_and_failed_starts_have_none() -> None:
    shown = table(
        "Distance to the nearest adversarial image",
        distance_record(2e-4),
        distance_record(4e-4, seed=1),
        distance_record(None, target="lost"),
        distance_record(3e-4, protocol="cw", attack="CW"),
    )
    assert column(shown, "median") == ["3.00e-04 ± 1.4e-04", "–", "3.00e-04"]
    assert column(shown, "95 %") == ["1.60e-04–5.00e-04", "–", "2.40e-04–3.75e-04"]
    assert column(shown, "found / right when clean") == ["176 / 180", "0 / 90", "88 / 90"]
    assert column(shown, "failed starts") == ["4", "90", "2"]
    assert column(shown, "attack") == ["BoundaryAttack", "BoundaryAttack", "CW"]
    assert "–: no image counts (lost)." in shown.note


def test_budgets_of_one_attack_are_rows_of_their_own() -> None:
    results = [distance_record(attack_settings={"queries": queries}) for queries in (1000, 5000)]
    shown = table("Distance to the nearest adversarial image", *results)
    assert column(shown, "attack") == ["BoundaryAttack (queries 1000)", "BoundaryAttack (queries 5000)"]


def test_distances_are_given_in_units_of_the_baselines() -> None:
    results = [distance_record(2e-4), distance_record(6e-4, target="p=0.1"), distance_record(2.2e-4, target="p=0.5")]
    (sentence,) = (s for s in findings(results, baseline="standard") if "distance" in s)
    assert "p=0.1 3.00, p=0.5 1.10 (intervals overlap)." in sentence


def test_a_network_without_a_distance_has_no_part_in_the_sentence() -> None:
    results = [distance_record(2e-4), distance_record(None, target="lost")]
    assert not any("distance" in s for s in findings(results, baseline="standard"))
    assert not any("distance" in s for s in findings(results, baseline="lost"))


def test_an_attack_of_decisions_shows_no_backward_passes() -> None:
    counts = {"n_forward_passes": 490_000, "n_backward_passes": 0}
    shown = table("Distance to the nearest adversarial image", distance_record(**counts))
    assert column(shown, "forward passes") == ["4900.0"]
    assert column(shown, "backward passes") == ["0.0"]
