from __future__ import annotations

from dcn_plugin.report import findings
from tests.report.tables_by_title import column, table
from tests.toy_records import noise_record, shuffle_record


def test_both_kinds_of_noise_share_a_table_that_names_them() -> None:
    shown = table("Gaussian noise", noise_record(), noise_record(attack="gaussian-clipped"))
    assert column(shown, "attack") == ["gaussian-plain", "gaussian-clipped"]
    assert "level" in shown.headers
    assert "eps" in table("Gaussian noise", noise_record(attack="gaussian-clipped")).headers


def test_shuffles_are_told_apart_by_k_and_not_by_the_attack() -> None:
    shown = table("Patch shuffle", *(shuffle_record(k=k) for k in (2, 4, 8)))
    assert column(shown, "k") == ["2", "4", "8"]
    assert "attack" not in shown.headers
    assert "at least 0.99" in shown.note


def test_amplitude_swap_shows_how_often_the_amplitude_won() -> None:
    swap = noise_record(protocol="amplitude-swap", attack="amplitude swap", eps=None, attack_settings={},
                        figures={"n_amplitude_class": 20, "amplitude_class_rate": 0.25})  # fmt: skip
    assert column(table("Amplitude swap", swap), "amplitude's class") == ["25.0 %"]


def test_noise_is_compared_too() -> None:
    results = [noise_record(), noise_record(target="p=0.1", n_correct=60)]
    assert any(
        s.startswith("Gaussian noise, sigma 0.2: ") and "+15.0 points" in s
        for s in findings(results, baseline="standard")
    )


def test_a_low_figure_under_shuffle_is_not_called_worse() -> None:
    results = [shuffle_record(), shuffle_record(target="p=0.1", n_defended=1, n_correct=1)]
    assert [s for s in findings(results, baseline="standard") if "Clean" not in s] == []
