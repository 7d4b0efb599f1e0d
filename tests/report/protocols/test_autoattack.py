from __future__ import annotations

from tests.report.tables_by_title import column, table
from tests.toy_records import autoattack_record

SETTINGS = {"version": "standard", "steps": 100}


def test_the_table_names_norm_and_version_and_both_norms_stand_apart() -> None:
    l2 = autoattack_record(eps=0.5, attack_settings={**SETTINGS, "norm": "L2", "eps": 0.5})
    shown = table("AutoAttack", autoattack_record(), l2)
    assert column(shown, "norm") == ["Linf", "L2"]
    assert column(shown, "robust accuracy") == ["30.0 %", "30.0 %"]
    assert "Version: standard." in shown.note
    assert "published" not in shown.note


def test_fewer_steps_than_published_are_said_to_be_so() -> None:
    few = autoattack_record(attack_settings={**SETTINGS, "norm": "Linf", "eps": 0.2, "steps": 10})
    assert "Steps: 10; the published attack takes 100." in table("AutoAttack", few).note
