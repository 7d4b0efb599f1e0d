"""The table of adv-lib's attacks, which is read without adv-lib."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dcn_plugin.adapters._adv_lib_table import KNOWN, NORMS, look_up, resolve_options
from dcn_plugin.errors import SpecError


def test_every_attack_names_its_year_its_paper_and_norms_that_exist() -> None:
    for name, entry in KNOWN.items():
        assert 2015 < entry.year < 2030 and "arXiv" in entry.source, name
        assert entry.norms and set(entry.norms) <= set(NORMS), name
        assert "steps" in entry.options, name


def test_options_that_are_not_given_have_their_defaults() -> None:
    assert resolve_options("DDN", {}) == dict(KNOWN["DDN"].options)
    assert resolve_options("DDN", {"steps": 7, "levels": 256}) == {**KNOWN["DDN"].options, "steps": 7, "levels": 256}
    assert resolve_options("APGD", {"loss": "ce", "radius": 1.5})["radius"] == 1.5


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: look_up("DDM"), "did you mean 'DDN'|DDN"),
        (lambda: look_up("TR"), "still has right"),
        (lambda: look_up("CW"), "dcn_plugin.attacks.CW"),
        (lambda: resolve_options("DDN", {"step": 3}), "'step'"),
        (lambda: resolve_options("DDN", {"steps": 0}), "an int >= 1"),
        (lambda: resolve_options("DDN", {"steps": 2.5}), "an int >= 1"),
        (lambda: resolve_options("PDGD", {"steps": 1}), "an int >= 2"),
        (lambda: resolve_options("DDN", {"levels": 1}), "levels"),
        (lambda: resolve_options("DDN", {"levels": 25.5}), "levels"),
        (lambda: resolve_options("ALMA", {"alpha": 1.0}), "alpha"),
        (lambda: resolve_options("FMN", {"gamma": float("nan")}), "gamma"),
        (lambda: resolve_options("FMN", {"step_size": "far"}), "step_size"),
        (lambda: resolve_options("APGD", {"loss": "cw"}), "dlr"),
        (lambda: resolve_options("APGD", {"radius": -1.0}), "radius"),
    ],
)
def test_what_does_not_exist_or_is_out_of_range_is_refused_by_name(make: Callable[[], object], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        make()
