"""Generated pages say what the recipes, records and parsers say, and nothing else."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dcn_plugin.evaluate import ResultFile
from dcn_plugin.experiments import list_recipes, load_recipe, plan_recipe, run_recipe
from dcn_plugin.experiments.comparison import Number
from dcn_plugin.masks import sample_mask
from dcn_plugin.specs import MaskSpec
from docs._build.cli_reference import cli_page
from docs._build.demo import demo_snippet
from docs._build.folders import RECIPES
from docs._build.mask_picture import CHANNELS, SIZE, STEPS, draws
from docs._build.measurements import MEASURED, adaptive_table, measured_pages, modern_table, whitebox_table
from docs._build.paper_map import NO_RECORD, paper_pages

RECIPE = """
reproduces = "Table 6"
title = "Toy"
data = "cifar10"
numbers = "table06_boundary"
inferred = ["The colour of the toy."]

[rows]
"Standard CNN" = "Standard"
"Defective CNN" = "0.1-Bottom"

[skip]
"Standard CNN + SD" = "not rerun"
"Standard CNN + DB" = "not rerun"
"Standard CNN + LS" = "not rerun"

[[measure]]
protocol = "gaussian"
levels = [16]
columns = "median_squared_l2_per_element"
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    root = tmp_path / "recipes"
    (root / "table06").mkdir(parents=True)
    (root / "paper_numbers").mkdir()
    (root / "table06" / "recipe.toml").write_text(RECIPE)
    table = "# Table 6. Toy.\nmodel,median_squared_l2_per_element\nStandard CNN,7.3e-06\nStandard CNN + SD,7.2e-06\n"
    table += "Standard CNN + DB,6.1e-06\nStandard CNN + LS,6.8e-06\nDefective CNN,3.5e-05\n"
    (root / "paper_numbers" / "table06_boundary.csv").write_text(table)
    return root


def cells_of(page: str, row: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_a_recipe_without_a_record_shows_the_papers_numbers_and_says_so(recipes: Path) -> None:
    pages = paper_pages(recipes)
    assert NO_RECORD in pages["map.md"] and "0 of 1 recipes have a committed record" in pages["map.md"]
    page = pages["table06.md"]
    assert NO_RECORD in page
    assert cells_of(page, "Defective CNN") == ["3.5e-05"]
    assert "The colour of the toy." in page and "Standard CNN + SD (not rerun)" in page
    assert "defective recipe run table06 --scale full --data ROOT" in page


def test_a_number_of_ours_is_shown_with_its_spread_and_the_papers(recipes: Path) -> None:
    row = {"column": "median_squared_l2_per_element", "figure": "median_distance", "seeds": 2, "counted": 9}
    rest = {"difference": None, "inferred": False, "scale": "small", "width": 16, "epochs": 8}
    numbers = [
        Number(row="Standard CNN", ours=1.24e-5, spread=2e-6, paper=7.3e-06, **row, **rest),
        Number(row="Defective CNN", ours=None, spread=None, paper=3.5e-05, **row, **rest),
        Number(row="A row of ours", ours=0.5, spread=None, paper=None, **row, **rest),
    ]
    spec = {
        "numbers": [number.to_json() for number in numbers],
        "scale": {"name": "small"},
        "caveats": "Smaller networks.",
        "data": "CIFAR-10",
        "seeds": [0, 1],
        "versions": {"torch": "2"},
        "hardware": {"processor": "abacus"},
    }
    record = {"spec": spec, "run": {"command": "make it", "finished": "today"}, "results": []}
    (recipes / "table06" / "record.json").write_text(json.dumps(record))
    pages = paper_pages(recipes)
    assert "| scale small, 2 numbers |" in pages["map.md"]
    page = pages["table06.md"]
    assert cells_of(page, "Standard CNN") == ["1.2e-05 ± 2.0e-06 (7.3e-06)"]
    assert cells_of(page, "Defective CNN") == ["– (3.5e-05)"]
    assert cells_of(page, "A row of ours") == ["0.50"]
    for text in ("`make it`", "Smaller networks.", "torch 2", "abacus", "today", "records/table06.json"):
        assert text in page


def test_a_record_is_shown_with_its_verdict_its_effects_and_the_likely_reason(recipes: Path) -> None:
    rest = {"figure": "median_distance", "seeds": 2, "counted": 9, "difference": 0.0, "inferred": False}
    rest |= {"column": "median_squared_l2_per_element", "scale": "small", "width": 16, "epochs": 8}
    numbers = [
        Number(row="Standard CNN", ours=1e-5, spread=2e-8, paper=7.3e-06, **rest),
        Number(row="Defective CNN", ours=1.1e-5, spread=2e-8, paper=3.5e-05, **rest),
    ]
    spec = {"numbers": [number.to_json() for number in numbers], "scale": {"name": "small"}, "caveats": "", "data": ""}
    spec |= {"seeds": [0, 1], "versions": {}, "hardware": {}}
    (recipes / "table06" / "record.json").write_text(json.dumps({"spec": spec, "run": {}, "results": []}))
    (recipes / "table06" / "finding.toml").write_text('reason = "The toys are small."\n')
    pages = paper_pages(recipes)
    assert "| scale small, 2 numbers | weaker (weaker 1) |" in pages["map.md"]
    page = pages["table06.md"]
    assert "Weaker than the paper (width 16, 8 epochs, 2 seeds): its one effect is weaker;" in page
    assert "Likely reason: The toys are small." in page
    (cell,) = cells_of(page, "Defective CNN against Standard CNN")
    assert re.fullmatch(r"x 1\.10 \(x 1\.\d\d to x 1\.\d\d; paper x 4\.79\): weaker", cell)


def test_the_records_of_two_scales_stand_side_by_side(recipes: Path) -> None:
    rest = {"figure": "median_distance", "seeds": 2, "counted": 9, "difference": 0.0, "inferred": False}
    rest |= {"column": "median_squared_l2_per_element"}
    shown = {"small": (16, 8, 1.1e-5), "medium": (32, 15, 2e-5)}
    for name, (width, epochs, ours) in shown.items():
        size = {"scale": name, "width": width, "epochs": epochs}
        numbers = [
            Number(row="Standard CNN", ours=1e-5, spread=2e-8, paper=7.3e-06, **rest, **size),
            Number(row="Defective CNN", ours=ours, spread=2e-8, paper=3.5e-05, **rest, **size),
        ]
        scale = {"name": name, "width": width, "training": {"epochs": epochs}}
        spec = {"numbers": [number.to_json() for number in numbers], "scale": scale, "caveats": f"About {name}."}
        spec |= {"seeds": [0, 1], "versions": {}, "hardware": {}, "data": ""}
        folder = recipes / "table06" / ("" if name == "small" else name)
        folder.mkdir(exist_ok=True)
        record = {"spec": spec, "run": {"command": f"make {name}"}, "results": []}
        (folder / "record.json").write_text(json.dumps(record))
    (recipes / "table06" / "finding.toml").write_text('reason = "The toys are small."\n')
    page = paper_pages(recipes)["table06.md"]
    side = page.partition("## By scale")[2]
    heads = next(line for line in side.splitlines() if line.startswith("| effect"))
    assert "small: width 16, 8 epochs, 2 seeds | medium: width 32, 15 epochs, 2 seeds | paper" in heads
    column, small, medium, paper = cells_of(side, "Defective CNN against Standard CNN")
    assert column.replace("\\", "") == "median_squared_l2_per_element" and paper == "x 4.79"
    assert small.startswith("x 1.10 (x 1.") and medium.startswith("x 2.00 (x ")
    assert "paper" not in small and "About medium." in side and "records/table06-medium.json" in side
    assert "`make small`" in page and "`make medium`" in side
    assert "## By scale" not in page.partition("## By scale")[0]


@pytest.mark.slow
def test_a_committed_record_stands_beside_the_papers_numbers(recipes: Path, tmp_path: Path) -> None:
    command = "defective recipe run table06 --scale smoke"
    outcome = run_recipe(plan_recipe(load_recipe("table06", recipes), "smoke", out=tmp_path / "runs"), command=command)
    record = next(file for file in outcome.files if file.name == "record.json")
    (recipes / "table06" / "record.json").write_bytes(record.read_bytes())
    pages = paper_pages(recipes)
    assert "1 of 1 recipes have a committed record" in pages["map.md"] and NO_RECORD not in pages["map.md"]
    page = pages["table06.md"]
    assert NO_RECORD not in page and f"`{command}`" in page
    assert str(ResultFile.read(record).spec["caveats"]) in page
    number = next(n for n in outcome.numbers if n.row == "Defective CNN" and n.paper is not None)
    ours = "–" if number.ours is None else f"{number.ours:.2f}"
    assert cells_of(page, "Defective CNN")[0] == f"{ours} (3.5e-05)"


def test_every_recipe_of_the_repository_has_a_page_with_every_number_of_the_paper() -> None:
    pages = paper_pages(RECIPES)
    names = list_recipes(RECIPES)
    assert set(pages) == {"map.md", *(f"{name}.md" for name in names)}
    assert {f"table{number:02}" for number in range(1, 19)} <= set(names)
    for name in names:
        spec, committed = load_recipe(name, RECIPES), (RECIPES / name / "record.json").exists()
        state = next(line for line in pages["map.md"].splitlines() if f"[{name}]({name}.md) |" in line)
        assert (NO_RECORD in state) is not committed
        if spec.numbers is not None and not committed and "only" not in spec.raw:
            shown = sum(line.startswith("| ") for line in pages[f"{name}.md"].partition("## Numbers")[2].splitlines())
            assert shown == len(spec.numbers.rows) + 1


def test_every_subcommand_and_option_stands_in_the_command_line_page() -> None:
    page = cli_page()
    assert page.count("\n## defective ") >= 6 and "\n### defective evaluate transfer" in page
    parser = argparse.ArgumentParser(prog="toy", description="a toy | with a bar")
    parser.add_argument(
        "--size", type=int, default=3, metavar="N", required=True, help="pixels <of> it (default: %(default)s)"
    )
    parser.add_argument("--hidden", help=argparse.SUPPRESS)
    own = cli_page(parser)
    assert "| `--size N` | required; pixels &lt;of&gt; it (default: 3) |" in own
    assert "A toy \\| with a bar" in own and "hidden" not in own.partition("## ")[2].partition("|")[2]


def write_art_record(folder: Path, results: list[dict[str, Any]]) -> None:
    record = {
        "command": "make it",
        "seed": 7,
        "data": "toys",
        "versions": {"art": "1", "torch": "2"},
        "hardware": {"processor": "abacus"},
        "results": results,
    }
    (folder / "record.json").write_text(json.dumps(record))


def test_the_white_box_table_holds_the_counts_of_the_record(tmp_path: Path) -> None:
    def result(attack: str, target: str, right: int, distance: float) -> dict[str, Any]:
        counts = {"n_correct": right, "n_total": 10, "median_distance": distance}
        return {"threat": "direct", "attack": attack, "target": target, **counts}

    rows = [result("PGD", "plain", 3, 1.0), result("PGD", "masked", 2, 1.0)]
    rows += [result("DeepFool", "plain", 1, 0.5), result("DeepFool", "masked", 0, 0.4)]
    write_art_record(tmp_path, [*rows, {"threat": "none", "attack": "clean", "target": "plain"}])
    table = whitebox_table(tmp_path / "record.json")
    assert cells_of(table, "PGD") == ["3 / 10", "2 / 10"] and cells_of(table, "DeepFool") == ["1 / 10", "0 / 10"]
    assert (
        "`make it` (seed 7" in table and "Of the 1 attacks that look for the closest image (DeepFool), 1 found" in table
    )
    assert "clean" not in table


def test_the_table_of_adaptive_attackers_holds_both_sources(tmp_path: Path) -> None:
    def result(threat: str, target: str, right: int) -> dict[str, Any]:
        return {"threat": threat, "attack": "PGD", "target": target, "n_correct": right, "n_total": 10}

    rows = [result("none", "plain", 9), result("none", "masked", 8), result("transfer", "plain", 1)]
    rows += [result("transfer", "masked", 6), result("adaptive", "plain", 5), result("adaptive", "masked", 2)]
    write_art_record(tmp_path, [*rows, result("direct", "plain", 0)])
    table = adaptive_table(tmp_path / "record.json")
    assert cells_of(table, "none: clean images") == ["9 / 10", "8 / 10"]
    assert cells_of(table, "a standard network") == ["1 / 10", "6 / 10"]
    assert cells_of(table, "a defective network") == ["5 / 10", "2 / 10"]
    assert "0 / 10" not in table and "`make it` (seed 7" in table
    assert "(masked against plain) goes from +50.0 to -30.0 points" in table
    assert "the defective one is the stronger attacker of masked" in table
    assert "leaves it 20.0 %, and plain 10.0 %, or less" in table


def test_the_table_of_todays_attacks_comes_from_the_record_alone(tmp_path: Path) -> None:
    assert "no committed record" in modern_table(tmp_path / "record.json")
    numbers = [
        {"row": "Standard", "column": "standard: pgd", "ours": 12.5},
        {"row": "0.3-Bottom", "column": "standard: pgd", "ours": 50.0},
        {"row": "0.3-Bottom", "column": "adaptive: pgd", "ours": 7.25},
    ]
    scale = {"images": 200, "width": 16, "training": {"epochs": 8}}
    record = {
        "spec": {"numbers": numbers, "scale": scale, "data": "CIFAR-10", "seeds": [4]},
        "run": {"command": "make it"},
    }
    (tmp_path / "record.json").write_text(json.dumps(record))
    table = modern_table(tmp_path / "record.json")
    assert cells_of(table, "standard: pgd") == ["12.5", "50.0"] and cells_of(table, "adaptive: pgd") == ["", "7.2"]
    assert "first 200 test images, width 16, 8 epochs, seed 4" in table and "`make it`" in table


def test_measured_folders_become_pages_and_missing_ones_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "recipes" / "bench_masks"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# Masks\n\n![a plot](plot.png)\n")
    (folder / "plot.png").write_bytes(b"png")
    (folder / "record.json").write_text("{}")
    inner = tmp_path / "recipes" / "bench_export" / "avx2"
    inner.mkdir(parents=True)
    (inner / "README.md").write_text("# Runtimes\n")
    (inner / "record.json").write_text("{}")
    assert measured_pages(tmp_path / "recipes", tmp_path / "out") == ["bench_masks", "bench_export/avx2"]
    assert "[record.json](bench_export_avx2/record.json)" in (tmp_path / "out" / "bench_export_avx2.md").read_text()
    assert "](bench_export_avx2.md)" in (tmp_path / "out" / "index.md").read_text()
    page = (tmp_path / "out" / "bench_masks.md").read_text()
    assert "![a plot](bench_masks/plot.png)" in page and "[record.json](bench_masks/record.json)" in page
    assert (tmp_path / "out" / "bench_masks" / "plot.png").read_bytes() == b"png"
    assert "no committed record" in (tmp_path / "out" / "coverage.md").read_text()
    assert (tmp_path / "out" / "index.md").read_text().count("no committed record") == len(MEASURED) - 2


def test_the_demo_table_holds_mean_and_range_over_the_seeds(tmp_path: Path) -> None:
    def result(seed: int, right: int) -> dict[str, Any]:
        known = {"protocol": "transfer", "target": "standard", "seed": seed, "n_total": 10, "n_clean_correct": 9}
        machine = {"versions": {"torch": "2"}, "hardware": {"processor": "abacus"}}
        return known | machine | {"n_correct": right, "attack_settings": {"eps": 0.1}}

    file = {"spec": {"seeds": [0, 1], "steps": 20}, "results": [result(0, 2), result(1, 5)]}
    (tmp_path / "results.json").write_text(json.dumps(file))
    snippet = demo_snippet(tmp_path, link="demo")
    assert cells_of(snippet, "standard") == ["90.0 (90.0 to 90.0)", "35.0 (20.0 to 50.0)"]
    assert re.search(r"!\[[^\]]{20,}\]\(demo/transfer_accuracy\.png\)", snippet)


@pytest.mark.parametrize("mode", ["neuron", "channel", "shared"])
def test_the_picture_draws_its_masks_from_the_stream_of_sample_mask(mode: Any) -> None:
    places = [int(letter, STEPS) for letter in draws()]
    area = SIZE * SIZE
    entry = {"neuron": lambda i: i, "channel": lambda i: i // area, "shared": lambda i: i % area}[mode]
    for level in (1, 6, STEPS):
        mask = sample_mask(MaskSpec(p=level / STEPS, mode=mode), (CHANNELS, SIZE, SIZE), site=0).flatten().tolist()
        assert mask == [places[entry(index)] < level for index in range(len(places))]
