"""The table of torchattack's attacks: complete, with years and papers, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

import pytest

from dcn_plugin.adapters._torchattack_table import _REFUSED, KNOWN, SHARED, look_up, resolve_options
from dcn_plugin.errors import SpecError

torchattack = pytest.importorskip("torchattack")


def test_every_attack_of_the_library_is_run_or_refused_with_a_reason() -> None:
    assert set(torchattack.ATTACK_REGISTRY) == {*KNOWN, *_REFUSED}
    assert not {*KNOWN} & {*_REFUSED}


@pytest.mark.parametrize("name", KNOWN)
def test_defaults_are_those_of_the_library_and_every_attack_has_a_year_and_a_paper(name: str) -> None:
    theirs = signature(torchattack.ATTACK_REGISTRY[name].__init__).parameters
    for option, default in {**SHARED, **KNOWN[name].options}.items():
        assert default == (theirs[option].default or 0.0), option
    assert 2018 <= KNOWN[name].year <= 2024
    assert "arXiv" in KNOWN[name].source or "ICCV" in KNOWN[name].source


def test_the_step_follows_eps_unless_it_is_given() -> None:
    assert resolve_options("BSR", {"eps": 0.2, "steps": 4})["alpha"] == pytest.approx(0.05)
    assert resolve_options("BSR", {"eps": 0.2, "alpha": 0.1})["alpha"] == 0.1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: look_up("BRS"), "BSR"),
        (lambda: look_up("MIG"), "raises the accuracy"),
        (lambda: look_up("NIFGSM"), "momentum is lost"),
        (lambda: look_up("BPA"), "replaces modules"),
        (lambda: look_up("L2T"), "CUDA"),
        (lambda: resolve_options("BSR", {"scale": 3}), "num_scale"),
        (lambda: resolve_options("BSR", {"steps": 0}), "an int >= 1"),
        (lambda: resolve_options("BSR", {"num_scale": 1.5}), "an int >= 1"),
        (lambda: resolve_options("BSR", {"eps": 8}), r"\(0, 1\]"),
        (lambda: resolve_options("DIFGSM", {"resize_rate": 1.0}), "resize_rate"),
        (lambda: resolve_options("GRA", {"eta": 0.0}), "eta"),
        (lambda: resolve_options("Admix", {"portion": float("nan")}), "portion"),
    ],
)
def test_what_does_not_exist_or_is_out_of_range_is_refused_by_name(make: Callable[[], object], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        make()
