from __future__ import annotations

from tests.report.tables_by_title import column, table
from tests.toy_records import tapm_record


def test_tapm_shows_the_closest_relation_of_its_sources_where_records_say_it() -> None:
    title = "Worst of all transfer attacks (TAPM)"
    shown = table(title, tapm_record(relation="same network"), tapm_record(target="p=0.1", relation="other network"))
    assert column(shown, "closest source is") == ["same network", "other network"]
    assert "white-box" in shown.note
    assert "closest source is" not in table(title, tapm_record()).headers


def test_tapm_names_the_worst_single_attack_and_what_it_was_the_worst_of() -> None:
    shown = table("Worst of all transfer attacks (TAPM)", tapm_record())
    assert shown.rows[0][1:] == ("0.2", "90.0 %", "30.0 %", "21.9–39.6 %", "30 / 100", "35.0 %", "vgg / PGD")
    assert "Sources: vgg, resnet." in shown.note
    assert "PGD(eps=8/255, steps=20); FGSM(eps=0.2)" in shown.note


def test_tapm_keeps_the_settings_where_two_attacks_share_a_name() -> None:
    settings = {"sources": "vgg", "attacks": "PGD(steps=20); PGD(steps=40)"}
    result = tapm_record(attack_settings=settings, figures={"worst_single": "vgg / PGD(steps=40)"})
    shown = table("Worst of all transfer attacks (TAPM)", result)
    assert shown.rows[0][-2:] == ("–", "vgg / PGD(steps=40)")
