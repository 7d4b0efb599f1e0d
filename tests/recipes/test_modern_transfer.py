"""The recipe of today's transfer attacks: who attacks whom."""

from __future__ import annotations

import pytest

from dcn_plugin.experiments.measurements import measurements_of
from dcn_plugin.experiments.recipe import load_recipe

RECIPE = "modern_transfer"


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_every_network_is_attacked_by_a_student_of_its_own_answers_and_by_no_other(scale: str) -> None:
    spec = load_recipe(RECIPE)
    attacked = {}
    for item in measurements_of(spec, scale, [0]):
        asked = [job for jobs in item.sources.values() for job in jobs if job.targets]
        for job in asked:
            ((row, targets),) = item.rows.items()
            assert list(targets) == job.targets
            assert (job.weights_seed, job.masks_seed) != (targets[0].weights_seed, targets[0].masks_seed)
            attacked[row] = job.scale.answers
    assert attacked.keys() == spec.rows.keys()
    assert all(answers > 0 for answers in attacked.values())


def test_the_defective_ensemble_has_masks_and_weights_of_its_own_and_the_expectation_many_masks() -> None:
    measurements = measurements_of(load_recipe(RECIPE), "full", [0])
    sources = {label: jobs for item in measurements for label, jobs in item.sources.items()}
    targets = [job for item in measurements for jobs in item.rows.values() for job in jobs]
    ensemble = sources["ensemble"]
    assert len({job.masks_seed for job in ensemble}) == len({job.weights_seed for job in ensemble}) == 5
    assert not {job.masks_seed for job in ensemble} & {job.masks_seed for job in targets}
    (expectation,) = sources["expectation"]
    assert expectation.network.redrawn == 8
    columns = {column.name for item in measurements for column in item.columns()}
    assert {"ensemble: modern GRA", "expectation: pgd", "distilled: TI-FGSM", "TAPM, adaptive attackers"} <= columns
