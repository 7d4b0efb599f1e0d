"""What is known about torchattacks' attacks: that it is so there, and which names and options are refused."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torchattacks
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dcn_plugin.adapters._torchattacks_table import KNOWN, look_up, resolve_options
from dcn_plugin.adapters.torchattacks import TorchAttack
from dcn_plugin.errors import SpecError

#: What docs/evaluate.md says alpha becomes: a share of eps.
SHARES = {
    **dict.fromkeys(("BIM", "RFGSM", "PGD", "EOTPGD", "TPGD", "UPGD", "Jitter", "PGDRS"), 1 / 4),
    **dict.fromkeys(("MIFGSM", "NIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM", "DIFGSM", "TIFGSM"), 1 / 4),
    **dict.fromkeys(("PGDL2", "PGDRSL2"), 1 / 5),
    "FFGSM": 5 / 4,
}


def test_the_attacks_with_a_step_are_those_of_the_documented_table() -> None:
    def has_step(name: str) -> bool:
        return "alpha" in inspect.signature(getattr(torchattacks, name).__init__).parameters

    assert {name for name in KNOWN if has_step(name)} == set(SHARES)


@pytest.mark.parametrize("name", SHARES)
@given(eps=st.floats(1e-3, 1), steps=st.integers(1, 30))
def test_a_step_that_is_not_given_follows_eps_and_reaches_the_edge(name: str, eps: float, steps: int) -> None:
    options: dict[str, Any] = {"eps": eps} if name == "FFGSM" else {"eps": eps, "steps": steps}
    attack = TorchAttack(name, **options)
    least = eps / options.get("steps", 1)
    assert attack.settings["alpha"] == pytest.approx(max(SHARES[name] * eps, least), rel=1e-12)
    attack._warn_if_weak()
    assert TorchAttack(name, alpha=0.01, **options).settings["alpha"] == 0.01


@pytest.mark.parametrize("name", SHARES)
def test_at_torchattacks_own_eps_the_step_is_torchattacks_own(name: str) -> None:
    theirs = getattr(torchattacks, name)(nn.Linear(1, 1))
    ours = TorchAttack(name)
    assert (ours.settings["alpha"], ours.eps) == (theirs.alpha, theirs.eps)


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("DIFGSM", {"resize_rate": 1.0}, "resize_rate"),
        ("TIFGSM", {"resize_rate": 0.0}, "resize_rate"),
        ("DIFGSM", {"diversity_prob": 1.5}, r"\[0, 1\]"),
        ("PGDRS", {"noise_batch_size": 9, "batch_max": 8}, "noise_batch_size"),
        ("PGDRSL2", {"noise_batch_size": 2049}, "1 .. 2048"),
        ("PGDL2", {"eps_for_division": 0.0}, "eps_for_division"),
        ("Jitter", {"scale": 0}, "scale"),
        ("Square", {"p_init": 1.5}, "p_init"),
        ("APGD", {"rho": 0.0}, "rho"),
        ("APGDT", {"n_classes": 1}, "int >= 2"),
        ("FAB", {"alpha_max": 1.1}, "alpha_max"),
        ("FAB", {"beta": 1.5}, "beta"),
        ("FAB", {"eta": 0.0}, "eta"),
        ("SINIFGSM", {"m": 64}, "63"),
        ("TIFGSM", {"nsig": 0}, "nsig"),
        ("AutoAttack", {"steps": 0}, "int >= 1"),
    ],
)
def test_an_option_that_fails_half_way_or_does_nothing_is_refused(
    name: str, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(SpecError, match=match):
        TorchAttack(name, **options)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("DIFGMS", "DIFGSM"),
        ("difgsm", "DIFGSM"),
        ("CW", r"dcn_plugin\.attacks\.CW"),
        ("LGV", "wraps"),
        ("Pixle", "FGSM"),
    ],
)
def test_an_attack_that_is_not_in_the_table_is_refused_with_a_way_on(name: str, fix: str) -> None:
    with pytest.raises(SpecError, match=fix):
        TorchAttack(name)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"step": 3}, "did you mean steps"),
        ({"model": 3}, "no such option"),
        ({"verbose": True}, "no such option"),
        ({"steps": 0}, "int >= 1"),
        ({"steps": 2.5}, "int >= 1"),
        ({"steps": True}, "int >= 1"),
        ({"alpha": float("nan")}, "finite"),
        ({"alpha": "big"}, "finite"),
        ({"alpha": 0.0}, "finite number > 0"),
        ({"eps": "8/255"}, "eps"),
        ({"decay": -1.0}, "finite number >= 0"),
        ({"random_start": 1}, "True, False"),
        ({"eps": 0}, "eps"),
        ({"eps": 8}, "8 / 255"),
        ({"batch": 0}, "batch"),
        ({"seed": -1}, "seed"),
    ],
)
def test_an_option_that_does_not_exist_or_fit_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        TorchAttack("DIFGSM", **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("FAB", {"norm": "L1"}),
        ("Square", {"loss": "dlr"}),
        ("AutoAttack", {"version": "fast"}),
        ("UPGD", {"loss": lambda *_: 0}),
        ("PGDL2", {"eps": 0}),
        ("PGDL2", {"eps": float("inf")}),
    ],
)
def test_a_value_outside_of_the_closed_choices_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        TorchAttack(name, **options)


every_name = pytest.mark.parametrize("name", KNOWN)


def parameters(name: str) -> dict[str, Any]:
    """Options of torchattacks' constructor and their defaults."""
    signature = inspect.signature(getattr(torchattacks, name).__init__).parameters
    return {key: value.default for key, value in signature.items() if key not in ("self", "model", "seed", "verbose")}


@every_name
def test_what_the_table_says_of_an_attack_is_so_in_torchattacks(name: str) -> None:
    known, options = look_up(name), parameters(name)
    assert known is KNOWN[name]
    assert known.norm in ("Linf", "L2") if "norm" not in options else known.norm is None
    assert (known.random == "start") <= ("random_start" in options)
    for key, values in known.choices.items():
        assert options[key] in values, key
    # Nothing that asks about fewer and fewer images is random without saying so.
    assert not known.correct_only or known.random is True


@every_name
def test_all_options_are_resolved_those_that_are_given_and_the_defaults(name: str) -> None:
    added = {"steps": 100} if name == "AutoAttack" else {}
    assert resolve_options(name, {}) == {**parameters(name), **added}
    resolved = resolve_options(name, {"eps": np.float32(0.5)})
    assert (resolved["eps"], type(resolved["eps"])) == (0.5, float)
    assert resolved.keys() == {*parameters(name), *added}


def test_whether_an_attack_draws_may_be_an_option() -> None:
    for start in (True, False):
        assert KNOWN["PGD"].draws({"random_start": start}) is start
    assert KNOWN["DIFGSM"].draws({"random_start": False})
    assert not KNOWN["MIFGSM"].draws({})


@pytest.mark.parametrize(
    ("name", "options", "classes"),
    [
        ("FGSM", {}, 2),
        ("APGD", {"loss": "ce"}, 2),
        ("APGD", {"loss": "dlr"}, 3),
        ("APGDT", {}, 4),
        ("AutoAttack", {}, 4),
        ("AutoAttack", {"version": "rand"}, 3),
    ],
)
def test_a_loss_needs_as_many_classes_as_it_compares(name: str, options: dict[str, str], classes: int) -> None:
    assert KNOWN[name].classes_needed(options) == classes


def test_a_refusal_names_the_value_what_is_allowed_and_the_nearest_name() -> None:
    with pytest.raises(SpecError) as caught:
        look_up("mifgm")
    assert (caught.value.got, caught.value.fix) == ("mifgm", "did you mean MIFGSM, VMIFGSM, TIFGSM?")
    assert str(caught.value.allowed).split(", ") == list(KNOWN)
    with pytest.raises(SpecError) as caught:
        resolve_options("MIFGSM", {"decya": 1.0})
    assert (caught.value.got, caught.value.fix) == ("decya", "did you mean decay?")
    assert str(caught.value.allowed).split(", ") == [*parameters("MIFGSM"), "seed"]
    with pytest.raises(SpecError) as caught:
        resolve_options("PGD", {"steps": 0})
    assert (caught.value.got, caught.value.allowed) == (0, "an int >= 1")
