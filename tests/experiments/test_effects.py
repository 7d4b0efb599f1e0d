from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dcn_plugin.experiments.comparison import Number
from dcn_plugin.experiments.effects import effects_of, references
from dcn_plugin.experiments.recipe import RecipeSpec, load_recipe
from dcn_plugin.support.statistics import newcombe
from tests.experiments.recipe_files import TINY, write_recipe
from tests.toy_records import distance_record

STANDARD, DEFECTIVE = "ResNet-18 standard", "ResNet-18 0.3-Bottom"


def number(row: str, ours: float | None, **changes: Any) -> Number:
    fields: dict[str, Any] = {
        "row": row,
        "column": "src_resnet18",
        "figure": "defense_rate",
        "ours": ours,
        "seeds": 1,
        "spread": None,
        "counted": 500,
        "paper": None,
        "difference": None,
        "inferred": False,
        "scale": "small",
        "width": 16,
        "epochs": 8,
    }
    return Number(**{**fields, **changes})


@pytest.fixture
def spec(tmp_path: Path) -> RecipeSpec:
    return load_recipe(write_recipe(tmp_path))


def test_an_effect_is_the_row_less_its_standard_row_ours_and_the_papers(spec: RecipeSpec) -> None:
    table = [number(STANDARD, 10.0, paper=5.98), number(DEFECTIVE, 60.0, paper=78.23, inferred=True)]
    (one,) = effects_of(spec, table)
    assert (one.row, one.against, one.column, one.unit) == (DEFECTIVE, STANDARD, "src_resnet18", "points")
    assert (one.ours, one.paper) == (50.0, pytest.approx(72.25))
    assert (one.low, one.high) == pytest.approx([100 * end for end in newcombe((300, 500), (50, 500))])
    assert one.inferred


def test_a_column_without_the_standard_row_or_without_images_has_no_effect(spec: RecipeSpec) -> None:
    assert effects_of(spec, [number(DEFECTIVE, 60.0)]) == []
    assert effects_of(spec, [number(STANDARD, None), number(DEFECTIVE, 60.0)]) == []
    assert effects_of(spec, [number(STANDARD, 10.0, column="src_vgg19"), number(DEFECTIVE, 60.0)]) == []


def test_more_seeds_are_no_more_images_and_their_spread_widens_the_interval(spec: RecipeSpec) -> None:
    one_seed = effects_of(spec, [number(STANDARD, 10.0), number(DEFECTIVE, 60.0)])[0]
    still = {"seeds": 3, "counted": 1500, "spread": 0.0}
    (same,) = effects_of(spec, [number(STANDARD, 10.0, **still), number(DEFECTIVE, 60.0, **still)])
    assert (same.low, same.high) == (one_seed.low, one_seed.high)
    wide = {**still, "spread": 6.0}
    (one,) = effects_of(spec, [number(STANDARD, 10.0, **wide), number(DEFECTIVE, 60.0, **wide)])
    half = 4.30265273 * math.sqrt(6**2 / 3 + 6**2 / 3)
    assert (one.low, one.high) == pytest.approx((50 - half, 50 + half))


def test_a_distance_is_compared_by_its_ratio_with_the_intervals_of_the_records(spec: RecipeSpec) -> None:
    figure = {"figure": "median_distance", "column": "boundary", "counted": 88}
    table = [number(STANDARD, 1e-4, paper=7.3e-6, **figure), number(DEFECTIVE, 3e-4, paper=3.5e-5, **figure)]
    results = [distance_record(1e-4, target=STANDARD), distance_record(3e-4, target=DEFECTIVE)]
    (one,) = effects_of(spec, table, results)
    assert (one.unit, math.exp(one.ours)) == ("factor", pytest.approx(3))
    assert math.exp(one.paper or 0) == pytest.approx(4.794, abs=1e-3)
    # Both records have an interval of 0.8 to 1.25 times their median.
    half = math.sqrt(2) * math.log(1.25)
    assert (one.low, one.high) == pytest.approx((math.log(3) - half, math.log(3) + half))


def test_a_distance_whose_interval_is_not_known_may_be_anything(spec: RecipeSpec) -> None:
    figure = {"figure": "median_distance", "column": "boundary"}
    (one,) = effects_of(spec, [number(STANDARD, 1e-4, **figure), number(DEFECTIVE, 3e-4, **figure)])
    assert (one.low, one.high) == (-math.inf, math.inf)
    assert effects_of(spec, [number(STANDARD, 0.0, **figure), number(DEFECTIVE, 3e-4, **figure)]) == []


def test_the_ratio_of_distances_over_seeds_has_the_interval_of_their_spread(spec: RecipeSpec) -> None:
    figure = {"figure": "median_distance", "column": "boundary", "seeds": 2}
    table = [number(STANDARD, 1e-4, spread=1e-5, **figure), number(DEFECTIVE, 2e-4, spread=4e-5, **figure)]
    (one,) = effects_of(spec, table)
    half = 12.7062047 * math.sqrt((0.1**2 + 0.2**2) / 2)
    assert (one.low, one.high) == pytest.approx((math.log(2) - half, math.log(2) + half))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("table04", {"VGG-19 0.3-Bottom": "VGG-19 standard", "ResNet-18 0.5-Bottom": "ResNet-18 standard"}),
        ("table05", {"0.3-Top": "Standard", "0.5-Bottom channel (DC)": "Standard"}),
        ("table07", {"Defective CNN": "Standard CNN", "Adversarial Training (Madry et al., 2017)": "Standard CNN"}),
        ("table10", {"0.3-Bottom other masks": "0.3-Bottom same masks, other initialisation"}),
        ("table13", {"0.1-Bottom (5)": "VGG-19"}),
        ("table14", {"0.3-Bottom EN": "Standard ensemble of 5 (EN)", "Standard ensemble of 5 (EN)": "ResNet-18"}),
        ("adversarial_training", {"0.5-Bottom + AT": "Standard + AT", "Standard + AT": "Standard"}),
        ("new_modes", {"channel, masked": "Standard", "p rising with depth": "Standard"}),
    ],
)
def test_a_row_is_held_against_the_row_that_lacks_its_masks(name: str, wanted: dict[str, str]) -> None:
    found = references(load_recipe(name))
    assert {row: found[row] for row in wanted} == wanted


def test_the_standard_row_itself_and_rows_of_standard_networks_alone_are_held_against_none() -> None:
    assert "Standard" not in references(load_recipe("table05"))
    assert references(load_recipe("table11")) == {}


def test_a_recipe_may_name_the_row_itself(tmp_path: Path) -> None:
    text = TINY.replace("[smoke]", f'[against]\n"{STANDARD}" = "{DEFECTIVE}"\n[smoke]')
    found = references(load_recipe(write_recipe(tmp_path, text)))
    assert found[STANDARD] == DEFECTIVE
