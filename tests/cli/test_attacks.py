from __future__ import annotations

import pytest

from dcn_plugin.attacks import CW, PGD, BoundaryAttack, HopSkipJump
from dcn_plugin.cli.attacks import open_attacks
from dcn_plugin.errors import SpecError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fgsm,eps=8/255", PGD(8 / 255, steps=1, step_size=8 / 255)),
        ("pgd,eps=16/255,steps=20,step_size=1/255", PGD(16 / 255, steps=20, step_size=1 / 255)),
        ("boundary,max_queries=100", BoundaryAttack(max_queries=100)),
        ("boundary-paper", BoundaryAttack.paper()),
        ("hopskipjump,norm=linf", HopSkipJump(norm="linf")),
        ("cw,confidence=3", CW(confidence=3)),
        ("cw-paper,confidence=20", CW.paper(confidence=20)),
    ],
)
def test_our_own_attacks_are_made_with_their_options(text: str, expected: object) -> None:
    (attack,) = open_attacks([text])
    assert type(attack) is type(expected)
    assert repr(attack) == repr(expected)


def test_attacks_and_sets_of_torchattacks_are_known_too() -> None:
    pytest.importorskip("torchattacks")
    assert [attack.name for attack in open_attacks(["DIFGSM,eps=4/255,steps=2"])] == ["DIFGSM"]
    assert open_attacks(["DIFGSM,eps=4/255,steps=2"])[0].eps == 4 / 255
    assert {attack.name for attack in open_attacks(["modern,eps=4/255"])} >= {"DIFGSM", "TIFGSM", "VMIFGSM"}
    assert {attack.eps for attack in open_attacks(["paper"])} == {8 / 255, 16 / 255, 32 / 255}


@pytest.mark.parametrize(
    "text", ["pdg,eps=0.1", "NOFGSM", "pgd", "pgd,eps=0.1,stepps=3", "DIFGSM,epss=0.1", "pgd,eps=7"]
)
def test_an_attack_or_option_that_does_not_exist_is_refused_by_name(text: str) -> None:
    with pytest.raises(SpecError):
        open_attacks([text])


def test_a_misspelt_attack_gets_the_nearest_names() -> None:
    with pytest.raises(SpecError, match="did you mean pgd"):
        open_attacks(["pdg,eps=0.1"])
    with pytest.raises(SpecError, match="did you mean modern"):
        open_attacks(["modrn,eps=0.1"])


@pytest.mark.parametrize("name", ["MIFGSM", "APGD", "PGDL2", "Square", "AutoAttack"])
def test_a_name_of_torchattacks_without_its_capitals_is_meant_all_the_same(name: str) -> None:
    pytest.importorskip("torchattacks")
    with pytest.raises(SpecError, match=f"did you mean {name}"):
        open_attacks([f"{name.lower()},eps=0.1"])
