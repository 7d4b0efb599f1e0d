"""The benchmark of a second run: it says whether the limit holds, and it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcn_plugin.experiments.recipe import load_recipe
from dcn_plugin.support.environment import hardware, package_versions
from recipes.bench_recipes import bench
from tests.image_files import pixels, write_image


def record(second: float) -> dict[str, object]:
    row = {
        "files": 0,
        "first_s": 30.0,
        "second_s": second,
        "second_quartiles_s": [second - 0.1, second, second + 0.1],
        "imports_s": 1.5,
    }
    return {
        "command": "python recipes/bench_recipes/bench.py",
        "rounds": 2,
        "versions": package_versions(),
        "hardware": hardware(),
        "measured": {"embedded digits": row},
    }


@pytest.mark.parametrize(("second", "verdict"), [(4.9, "holds"), (5.1, "MISSED")])
def test_the_page_says_whether_the_limit_holds(second: float, verdict: str) -> None:
    (line,) = (line for line in bench.markdown(record(second)).splitlines() if line.startswith("| embedded digits"))
    assert line.endswith(f"| {verdict} |")
    assert f"{second:.2f}" in line


def test_the_recipe_for_files_has_the_sizes_of_scale_smoke(tmp_path: Path) -> None:
    spec = load_recipe(bench.tiny_recipe(tmp_path))
    small, smoke = spec.scale("small"), load_recipe(bench.RECIPE).scale("smoke")
    assert (small.width, small.train_images, small.training.epochs) == (smoke.width, smoke.train_images, 1)
    assert spec.data_at("small") == "cifar10"


@pytest.mark.slow
def test_the_benchmark_runs_on_the_digits_and_on_files(tmp_path: Path) -> None:
    for part, count in (("train", 16), ("test", 4)):
        for label in range(10):
            for number in range(count):
                image = np.asarray(pixels(32, 32, seed=label * 100 + number))
                write_image(tmp_path / part / str(label) / f"{number}.jpg", image)
    found = bench.measure(2, str(tmp_path))
    assert [row["files"] for row in found.values()] == [0, 200]
    for row in found.values():
        assert row["imports_s"] > 0 and row["second_s"] < row["first_s"]
