"""The recipe of what could mend the weakness against low frequencies: candidates, and what each is held against."""

from __future__ import annotations

import pytest

import dcn_plugin as dcn
from dcn_plugin.attacks import MIFGSM, TIFGSM, RandomLowPass
from dcn_plugin.experiments.measurements import measurements_of
from dcn_plugin.experiments.network_store import build, public_attacks
from dcn_plugin.experiments.networks import Job
from dcn_plugin.experiments.recipe import load_recipe

RECIPE = "low_frequency_defences"


def rows(scale: str) -> dict[str, Job]:
    return {
        label: job for item in measurements_of(load_recipe(RECIPE), scale, [0]) for label, (job,) in item.rows.items()
    }


def test_the_candidates_keep_as_many_neurons_as_the_papers_network_and_put_them_elsewhere() -> None:
    jobs = rows("smoke")
    shares, modes, depths = {}, {}, {}
    for label in ("0.3-Bottom", "holes of 3 x 3", "p rising with depth", "p falling with depth"):
        sites = dcn.summary(build(jobs[label])).rows
        counts = [site.shape[0] * site.shape[1] * site.shape[2] for site in sites]
        shares[label] = sum(site.kept * count for site, count in zip(sites, counts, strict=True)) / sum(counts)
        modes[label] = {site.mode for site in sites}
        depths[label] = [site.kept for site in sites]
    assert all(share == pytest.approx(0.3, abs=0.02) for share in shares.values())
    assert modes["holes of 3 x 3"] == {"hole 3x3"} != modes["0.3-Bottom"]
    assert depths["p rising with depth"][0] < 0.15 and depths["p rising with depth"][-1] > 0.5
    assert depths["p falling with depth"][0] > 0.5 and depths["p falling with depth"][-1] < 0.25


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_pubdef_of_low_frequencies_sees_such_images_and_every_attack_is_of_that_family(scale: str) -> None:
    spec = load_recipe(RECIPE)
    low = public_attacks(rows(scale)["0.3-Bottom + PubDef, low"])
    assert [type(attack) for attack in low] == [MIFGSM, TIFGSM]
    assert {attack.eps for attack in low} == {8 / 255}
    attacks = [attack for item in measurements_of(spec, scale, [0]) for attack in item.make_attacks().values()]
    assert {type(attack) for attack in attacks} == {MIFGSM, TIFGSM, RandomLowPass}
    assert set(spec.against.values()) == {"0.3-Bottom", "0.3-Bottom + PubDef"}
