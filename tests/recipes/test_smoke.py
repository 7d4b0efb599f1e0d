"""Every recipe runs at its smallest size: three of them in every test run, all of them in the long one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dcn_plugin.errors import MissingExtraError
from dcn_plugin.evaluate import ResultFile
from dcn_plugin.experiments.recipe import list_recipes, load_recipe, recipes_root
from dcn_plugin.experiments.run import plan_recipe, run_recipe
from dcn_plugin.report import load_run

FAST = ("figure04", "table10", "table12")
SLOW = [name for name in list_recipes(recipes_root()) if name not in FAST]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One output folder: the recipes share networks, as a user's do."""
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_the_smoke_of_a_recipe_fills_its_table(name: str, out: Path) -> None:
    spec = load_recipe(name)
    try:
        outcome = run_recipe(plan_recipe(spec, "smoke", out=out, device=torch.device("cpu")))
    except MissingExtraError as error:
        pytest.skip(str(error))
    record = ResultFile.read(out / name / "smoke" / "record.json")
    assert record.spec["numbers"] == [number.to_json() for number in outcome.numbers]
    assert {number.row for number in outcome.numbers} == set(spec.rows)
    # Every number of a row is there; the digits have no stylised images.
    for number in outcome.numbers:
        assert (number.scale, number.width, number.epochs) == ("smoke", 8, 1)
    if spec.numbers is not None:
        compared = {(number.row, number.column) for number in outcome.numbers if number.paper is not None}
        wanted = {
            (row.label, column)
            for row in spec.numbers.rows
            for column, value in row.values.items()
            if row.label in spec.rows and value is not None and column != "stylized_imagenet"
        }
        if "only" in spec.raw:  # some rows of a table, and some columns
            columns = {number.column for number in outcome.numbers}
            wanted = {(row, column) for row, column in wanted if column in columns}
        assert compared == wanted
    assert load_run(out / name / "smoke" / "record.json").results == list(record.results)
    assert str(out) not in json.dumps(record.spec)
