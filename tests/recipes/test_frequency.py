"""The recipe of low frequencies: what it asks for, and the heat map of its record."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dcn_plugin.attacks import MIFGSM, TIFGSM, LowPassPGD, RandomLowPass
from dcn_plugin.evaluate import ResultFile
from dcn_plugin.experiments.measurements import measurements_of
from dcn_plugin.experiments.recipe import load_recipe, recipes_root
from recipes.frequency.heatmap import accuracies, heatmap_png
from tests.toy_records import record

PNG = bytes([137, 80, 78, 71, 13, 10, 26, 10])


def numbers(**changes: Any) -> list[dict[str, Any]]:
    return [
        {"row": row, "column": column, "figure": "accuracy_all", "ours": value, **changes}
        for row, values in {"Standard": (90.0, 20.0, 55.5), "0.3-Bottom": (80.0, 60.0, None)}.items()
        for column, value in zip(("clean", "standard: MI-FGSM 1", "noise 1/8"), values, strict=True)
    ]


def test_networks_stand_across_and_attacks_down_and_a_number_that_is_missing_is_left_out() -> None:
    values = accuracies(ResultFile({"numbers": numbers()}, (record(),)))
    assert values["clean", "Standard"] == 90.0
    assert ("noise 1/8", "0.3-Bottom") not in values
    assert len(values) == 5


def test_the_record_of_a_run_is_drawn_from_the_command_line(tmp_path: Path) -> None:
    path, picture = tmp_path / "record.json", tmp_path / "frequency.png"
    file = ResultFile({"numbers": numbers()}, (record(),))
    file.write(path)
    command = [sys.executable, "-m", "recipes.frequency.heatmap", path, picture]
    subprocess.run(command, check=True, cwd=recipes_root().parent, timeout=100)
    assert picture.read_bytes().startswith(PNG)
    other = ResultFile({"numbers": numbers(ours=50.0)}, (record(),))
    assert heatmap_png(other) != heatmap_png(file)  # the numbers are in it


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_every_attack_of_the_recipe_is_of_low_frequencies_and_each_cut_off_is_a_column_of_its_own(scale: str) -> None:
    measurements = measurements_of(load_recipe("frequency"), scale, [0])
    attacks = [attack for item in measurements for attack in item.make_attacks().values()]
    assert {type(attack) for attack in attacks} == {MIFGSM, LowPassPGD, TIFGSM, RandomLowPass}
    assert {attack.eps for attack in attacks} == {8 / 255}
    columns = [column.name for item in measurements for column in item.columns()]
    assert len(columns) == len(set(columns)) == 2 * 12 + 4
    assert {"standard: MI-FGSM 1/8", "adaptive: TI-FGSM 15", "noise 1/4"} <= set(columns)
