from __future__ import annotations

import pytest

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import wilson
from dcn_plugin.report import cells, clean_cells, matrices, percent
from dcn_plugin.report.aggregate import apart
from tests.toy_records import check_record, cue_record, distance_record, matrix_records, noise_record, record


def test_the_runs_of_one_setting_become_one_cell_in_order_of_appearance() -> None:
    results = [
        record(seed=seed, target=target, eps=eps)
        for seed in (1, 0)
        for eps in (0.2, 0.1)
        for target in ("standard", "p=0.1")
    ]
    rows = cells([*results, noise_record()], protocol="transfer")
    assert [(cell.eps, cell.target) for cell in rows] == [
        (0.2, "standard"),
        (0.2, "p=0.1"),
        (0.1, "standard"),
        (0.1, "p=0.1"),
    ]
    assert all([run.seed for run in cell.runs] == [0, 1] for cell in rows)


def test_a_cell_averages_rates_sums_counts_and_spans_intervals() -> None:
    (cell,) = cells([record(seed=0, n_defended=40), record(seed=1, n_defended=20, n_correct=25)], protocol="transfer")
    assert cell.defense is not None
    assert cell.defense.mean == pytest.approx((0.5 + 0.25) / 2)
    assert cell.accuracy.mean == pytest.approx((0.45 + 0.25) / 2)
    assert cell.total("n_defended") == 60
    assert cell.defense_interval == (wilson(20, 80)[0], wilson(40, 80)[1])
    assert cell.accuracy_interval == (wilson(25, 100)[0], wilson(45, 100)[1])


def test_a_run_without_a_denominator_has_no_part_in_the_defence_rate() -> None:
    empty = {"n_clean_correct": 0, "n_counted": 0, "n_defended": 0}
    (cell,) = cells([record(seed=0), record(seed=1, **empty)], protocol="transfer")
    assert cell.defense is not None
    assert (cell.defense.mean, cell.defense.count) == (0.5, 1)
    (cell,) = cells([record(**empty)], protocol="transfer")
    assert cell.defense is None
    assert cell.defense_interval is None
    assert percent(cell.defense) == "–"


def test_a_setting_measured_twice_with_one_seed_is_refused() -> None:
    with pytest.raises(RecordError, match="twice"):
        cells([record(), record()], protocol="transfer")


def test_clean_accuracy_is_read_once_a_seed() -> None:
    rows = clean_cells([record(eps=0.1), record(eps=0.2), record(eps=0.1, seed=1, n_clean_correct=80)])
    assert [(cell.target, cell.clean.count) for cell in rows] == [("standard", 2)]
    assert rows[0].clean.mean == pytest.approx(0.85)


def test_percent_shows_a_deviation_only_over_several_runs() -> None:
    (one,) = cells([record()], protocol="transfer")
    (two,) = cells([record(seed=0), record(seed=1, n_correct=55)], protocol="transfer")
    assert percent(one.accuracy) == "45.0 %"
    assert percent(two.accuracy) == "50.0 ± 7.1 %"
    assert percent(0.123) == "12.3 %"


def test_attacks_of_one_name_and_eps_with_other_steps_are_told_apart_and_named() -> None:
    results = [record(attack_settings={"eps": 0.2, "steps": steps}, steps=steps) for steps in (7, 20)]
    assert [cell.attack for cell in cells(results, protocol="transfer")] == ["PGD (steps 7)", "PGD (steps 20)"]


def test_a_setting_that_follows_the_strength_is_no_other_attack() -> None:
    results = [record(attack_settings={"eps": eps, "step_size": eps / 4}, eps=eps) for eps in (0.1, 0.2)]
    assert [cell.attack for cell in cells(results, protocol="transfer")] == ["PGD", "PGD"]


def test_radii_of_two_norms_are_told_apart_at_whatever_strength() -> None:
    settings = [{"norm": "L2", "eps": 0.5}, {"norm": "Linf", "eps": 0.03}, {"eps": 0.1}]
    results = [record(attack="APGD", attack_settings=one, eps=one["eps"]) for one in settings]
    assert [cell.attack for cell in cells(results, protocol="transfer")] == [
        "APGD (norm L2)",
        "APGD (norm Linf)",
        "APGD",
    ]
    (only,) = cells(results[:1], protocol="transfer")
    assert only.attack == "APGD (norm L2)"


def test_other_sources_of_tapm_are_told_apart_at_whatever_strength() -> None:
    met = {0.05: "a, d", 0.1: "a"}
    results = [record(attack="TAPM", attack_settings={"sources": names}, eps=eps) for eps, names in met.items()]
    assert [cell.attack for cell in cells(results, protocol="transfer")] == ["TAPM (sources a, d)", "TAPM (sources a)"]
    assert [cell.attack for cell in cells(results[:1], protocol="transfer")] == ["TAPM"]


def test_runs_with_other_seeds_of_the_attack_are_runs_of_one_setting() -> None:
    results = [record(attack_settings={"eps": 0.2, "seed": seed}) for seed in (0, 1)]
    (cell,) = cells(results, protocol="transfer")
    assert (cell.attack, len(cell.runs)) == ("PGD", 2)


@pytest.mark.parametrize(
    "change", [{"rounding": "8bit"}, {"data_hash": "1" * 64}, {"source": "other"}, {"attack": "FGSM"}, {"eps": 0.1}]
)
def test_whatever_else_differs_makes_another_cell(change: dict[str, str]) -> None:
    assert len(cells([record(), record(**change)], protocol="transfer")) == 2


def test_a_matrix_holds_the_sources_and_targets_of_one_attack_and_strength() -> None:
    squares = matrices([*matrix_records(), *matrix_records(eps=0.1), *matrix_records(attack="FGSM")])
    assert [(m.example.attack, m.example.eps) for m in squares] == [("PGD", 0.2), ("PGD", 0.1), ("FGSM", 0.2)]
    assert (squares[0].sources, squares[0].targets) == (["vgg", "resnet"], ["vgg", "standard"])
    assert squares[0].cells["vgg", "vgg"].relation == "same network"
    assert matrices([record()]) == []


def test_a_count_that_a_run_lacks_has_no_sum() -> None:
    (cell,) = cells([record(), record(seed=1, n_zero_gradient=None)], protocol="transfer")
    assert cell.total("n_zero_gradient") is None


def test_clean_accuracy_of_a_part_of_the_images_is_read_only_if_there_is_no_other() -> None:
    part = distance_record(n_total=95)
    assert [cell.runs[0].n_total for cell in clean_cells([part, record()])] == [100]
    assert [cell.runs[0].n_total for cell in clean_cells([part])] == [95]
    assert clean_cells([cue_record(1, 2)]) == []


def test_clean_accuracy_is_not_read_off_a_check_where_another_record_has_it() -> None:
    """The mutation: `clean_cells` reads the records of checks too."""
    check = check_record("noise", True, n_total=92, n_clean_correct=80)
    assert [cell.runs[0].n_total for cell in clean_cells([check, record()])] == [100]
    assert [cell.runs[0].n_total for cell in clean_cells([check])] == [92]


def test_intervals_that_touch_are_not_apart() -> None:
    """The mutation: `>` becomes `>=`, or `<` becomes `<=`."""
    assert not apart((0.2, 0.3), (0.1, 0.2))
    assert not apart((0.1, 0.2), (0.2, 0.3))
    assert apart((0.2, 0.3), (0.1, 0.19))
    assert apart((0.1, 0.19), (0.2, 0.3))
    assert not apart((0.1, 0.4), (0.2, 0.3))
    assert not apart(None, (0.2, 0.3))
    assert not apart((0.2, 0.3), None)
