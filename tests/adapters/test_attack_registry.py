"""One notation of attacks for the command line, recipes and Python."""

from __future__ import annotations

from typing import Any

import pytest

from dcn_plugin.adapters.attack_registry import ATTACKS, open_attack, open_attacks, parse_attack
from dcn_plugin.attacks import (
    CW,
    MIFGSM,
    PGD,
    TIFGSM,
    Attack,
    BoundaryAttack,
    HopSkipJump,
    LowPassPGD,
    RandomLowPass,
)
from dcn_plugin.cli.attacks import ATTACKS as HELP
from dcn_plugin.errors import MissingExtraError, SpecError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fgsm,eps=8/255", PGD(8 / 255, steps=1, step_size=8 / 255)),
        ("pgd,eps=16/255,steps=20,step_size=1/255", PGD(16 / 255, steps=20, step_size=1 / 255)),
        ("pgd-paper,eps=16/255", PGD.paper(16 / 255)),
        ("mi-fgsm,eps=0.1,cutoff=0.5", MIFGSM(0.1, cutoff=0.5)),
        ("ti-fgsm,eps=0.1,kernel=5", TIFGSM(0.1, kernel=5)),
        ("low-pass-pgd,eps=0.1,cutoff=0.5,steps=3", LowPassPGD(0.1, cutoff=0.5, steps=3)),
        ("low-pass-noise,eps=0.1", RandomLowPass(0.1)),
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


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("fgsm(8)", "fgsm,eps=8/255"),
        ("pgd(1, 20, 16)", "pgd,step_size=1/255,steps=20,eps=16/255"),
        ("pgd(0.25,20,1)", "pgd,step_size=0.25/255,steps=20,eps=1/255"),
        ("mi-fgsm(8,0.5)", "mi-fgsm,eps=8/255,cutoff=0.5"),
        ("mi-fgsm(8,1)", "mi-fgsm,eps=8/255,cutoff=1.0"),
        ("mi-fgsm(8)", "mi-fgsm,eps=8/255"),
        ("ti-fgsm(8,5)", "ti-fgsm,eps=8/255,kernel=5"),
        ("cw(20)", "cw-paper,confidence=20.0"),
    ],
)
def test_the_short_form_has_grey_levels_and_means_what_the_long_one_says(short: str, long: str) -> None:
    (one,), (other,) = open_attacks([short]), open_attacks([long])
    assert one.settings == pytest.approx(other.settings)


def test_sets_and_attacks_of_other_libraries_are_known_too() -> None:
    pytest.importorskip("torchattacks")
    pytest.importorskip("torchattack")
    assert [(a.name, a.eps) for a in open_attacks(["DIFGSM,eps=4/255,steps=2"])] == [("DIFGSM", 4 / 255)]
    assert {attack.eps for attack in open_attacks(["paper"])} == {8 / 255, 16 / 255, 32 / 255}
    modern = open_attack("modern(8)")
    assert list(modern) == list(open_attack("modern,eps=8/255"))
    assert {"TI-FGSM", "low-pass MI-FGSM", "BSR"} <= set(modern)
    assert {attack.eps for attack in modern.values()} == {8 / 255}
    (bsr,) = open_attacks(["BSR,eps=8/255,num_scale=3"])
    assert bsr.settings["library"].startswith("torchattack ")  # type: ignore[union-attr]


def test_a_library_in_front_decides_where_two_have_the_name() -> None:
    pytest.importorskip("torchattacks")
    pytest.importorskip("torchattack")
    libraries = [
        str(attack.settings["library"]).split()[0]
        for attack in open_attacks(["MIFGSM,eps=0.1", "torchattack:MIFGSM,eps=0.1", "torchattacks:MIFGSM,eps=0.1"])
    ]
    assert libraries == ["torchattacks", "torchattack", "torchattacks"]
    with pytest.raises(SpecError, match="no library of this name"):
        open_attack("torchatack:MIFGSM,eps=0.1")


def test_adv_lib_is_reached_or_named_with_its_extra() -> None:
    try:
        (attack,) = open_attacks(["DDN,steps=7"])
    except MissingExtraError as error:
        assert "minimum-norm" in str(error)
    else:
        assert attack.settings["steps"] == 7


@pytest.mark.parametrize(
    "text",
    ["pdg,eps=0.1", "NOFGSM", "pgd", "pgd,eps=0.1,stepps=3", "DIFGSM,epss=0.1", "pgd,eps=7", "modern,eps=0.1,n=3", ""],
)
def test_an_attack_or_option_that_does_not_exist_is_refused_by_name(text: str) -> None:
    with pytest.raises(SpecError):
        open_attacks([text])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("pdg,eps=0.1", "did you mean .*pgd"),
        ("modrn,eps=0.1", "did you mean modern"),
        ("modrn(8)", "did you mean modern"),
        ("bsr,eps=0.1", "did you mean BSR"),
        ("pgd(1,20)", r"pgd\(STEP,STEPS,EPS\)"),
        ("pgd(1,20,16,3)", r"pgd\(STEP,STEPS,EPS\)"),
        ("fgsm(a)", r"fgsm\(EPS\)"),
        ("fgsm(8", "NAME"),
        ("boundary(1)", "boundary"),
        ("MIG,eps=0.1", "MIG"),
        ("torchattack:MIG,eps=0.1", "raises the accuracy"),
    ],
)
def test_a_misspelt_attack_gets_the_nearest_names_or_its_form(text: str, match: str) -> None:
    with pytest.raises(SpecError, match=match):
        open_attacks([text])


@pytest.mark.parametrize("name", ["MIFGSM", "APGD", "PGDL2", "AutoAttack"])
def test_a_name_of_another_library_without_its_capitals_is_meant_all_the_same(name: str) -> None:
    pytest.importorskip("torchattacks")
    if name.lower() in ATTACKS:  # the registry has it as well
        assert open_attack(f"{name.lower()},eps=0.1")
    else:
        with pytest.raises(SpecError, match=f"did you mean {name}"):
            open_attacks([f"{name.lower()},eps=0.1"])


@pytest.mark.parametrize("name", ATTACKS)
def test_every_entry_is_made_as_its_example_and_stands_in_the_help(name: str) -> None:
    entry = ATTACKS[name]
    assert name in HELP
    assert parse_attack(entry.example.partition(" (")[0]).head == name
    try:
        made = open_attack(entry.example.partition(" (")[0])
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert all(isinstance(attack, Attack) for attack in made.values())
    if entry.year is not None:
        assert 2014 < entry.year < 2030 and "arXiv" in entry.source


def test_a_spec_keeps_what_was_written() -> None:
    spec: Any = parse_attack("BSR,eps=8/255,num_scale=3")
    assert (spec.head, spec.options) == ("BSR", {"eps": 8 / 255, "num_scale": 3})
