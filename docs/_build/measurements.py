"""Pages and tables of what was measured here: taken from the READMEs and records that are committed in recipes/."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["MEASURED", "adaptive_table", "measured_pages", "modern_table", "whitebox_table"]

MEASURED = {
    "coverage": "Every CNN of timm and torchvision",
    "art_evaluation": "Under ART's attacks",
    "fine_tuning": "From a trained network to a defective one",
    "bench_masks": "What masks cost",
    "bench_export": "What masks cost in runtimes",
    "bench_export/avx2": "What masks cost in runtimes, without AVX-512",
    "bench_engine": "Compact inference",
    "bench_training": "What the training loop costs",
    "bench_training_engine": "Training on the neurons that exist",
    "bench_recipes": "A recipe's second run",
    "bench_estimate": "A recipe's expected time",
    "bench_attacks": "Attacks beside Foolbox and ART",
    "pretrained": "The networks that come with the package",
}
_CLOSEST = ("DeepFool", "HopSkipJump", "Boundary")
_SOURCES = ("transfer", "adaptive")
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")


def measured_pages(recipes: Path, out: Path) -> list[str]:
    """Copy README, records and pictures of every measured folder; a folder without record becomes a page that says so.

    Args:
        recipes: the recipes folder.
        out: ``NAME.md``, ``NAME/`` and ``index.md`` are written there, with ``_`` for the slash of a folder in a folder.

    Returns:
        Names of the folders that have a record.
    """
    out.mkdir(parents=True, exist_ok=True)
    found, rows = [], []
    for name, title in MEASURED.items():
        readme, record = recipes / name / "README.md", recipes / name / "record.json"
        committed, page = readme.is_file() and record.is_file(), name.replace("/", "_")
        rows.append(f"| [{title}]({page}.md) | `recipes/{name}` | {'committed' if committed else 'no committed record'} |")
        if not committed:
            (out / f"{page}.md").write_text(f"# {title}\n\nThere is no committed record of `recipes/{name}` yet.\n")
            continue
        found.append(name)
        text = readme.read_text(encoding="utf-8")
        (out / page).mkdir()
        for picture in [match for match in _IMAGE.findall(text) if (recipes / name / match).is_file()]:
            shutil.copy(recipes / name / picture, out / page / Path(picture).name)
            text = text.replace(f"]({picture})", f"]({page}/{Path(picture).name})")
        files = sorted((recipes / name).glob("*.json"))
        for file in files:
            shutil.copy(file, out / page / file.name)
        text += f"\nAll counts: {', '.join(f'[{file.name}]({page}/{file.name})' for file in files)}.\n"
        (out / f"{page}.md").write_text(text, encoding="utf-8")
    table = "\n".join(["| what | folder | record |", "|---|---|---|", *rows])
    (out / "index.md").write_text(f"{_INTRO}\n{table}\n", encoding="utf-8")
    return found


def whitebox_table(record: Path) -> str:
    """What attackers with access did to a standard and a defective network, from the record of ``art_evaluation``."""
    read: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    direct = [result for result in read["results"] if result["threat"] == "direct"]
    targets = list(dict.fromkeys(result["target"] for result in direct))
    lines = _still_right("attack on the network itself", {result["attack"]: result["attack"] for result in direct}, direct)
    closest = [name for name in _CLOSEST if {r["target"] for r in direct if r["attack"] == name} == set(targets)]
    nearer = [name for name in closest if _distance(direct, name, targets[1]) < _distance(direct, name, targets[0])]
    distances = (
        f"Of the {len(closest)} attacks that look for the closest image ({', '.join(closest)}), {len(nearer)} found nearer ones "
        f"for {targets[1]} than for {targets[0]} (median distance; few images and small budgets). More on the page "
        "[under ART's attacks](../measured/art_evaluation.md)."
    )
    return "\n".join([*lines, "", _made(read), "", distances]) + "\n"


def adaptive_table(record: Path) -> str:
    """What images from a standard and from a defective source did to both, from the record of ``art_evaluation``."""
    read: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    sources = {"none": "none: clean images", "transfer": "a standard network", "adaptive": "a defective network"}
    shown = [{**result, "attack": result["threat"]} for result in read["results"] if result["threat"] in sources]
    lines = _still_right("the attacker's own network", sources, shown)
    standard, masked = dict.fromkeys(result["target"] for result in shown)
    share = {(r["threat"], r["target"]): 100 * r["n_correct"] / r["n_total"] for r in shown}
    gains = [f"{share[source, masked] - share[source, standard]:+.1f}" for source in _SOURCES]
    stronger = "standard" if share["transfer", masked] <= share["adaptive", masked] else "defective"
    found = (
        f"From a standard source to a defective one, the difference that the masks make ({masked} against {standard}) goes "
        f"from {gains[0]} to {gains[1]} points. Of the two sources the {stronger} one is the stronger attacker of "
        f"{masked}: an attacker who tries both leaves it {min(share[source, masked] for source in _SOURCES):.1f} %, and "
        f"{standard} {min(share[source, standard] for source in _SOURCES):.1f} %, or less. One training run of each network."
    )
    return "\n".join([*lines, "", _made(read), "", found]) + "\n"


def _still_right(head: str, attacks: Mapping[str, str], results: list[dict[str, Any]]) -> list[str]:
    """A table of attacks (name -> what the row is called) by targets."""
    targets = list(dict.fromkeys(result["target"] for result in results))
    lines = [f"| {head} | " + " | ".join(targets) + " |", "|:--|" + "--:|" * len(targets)]
    for attack, label in attacks.items():
        by_target = {r["target"]: f"{r['n_correct']} / {r['n_total']}" for r in results if r["attack"] == attack}
        lines.append(f"| {label} | " + " | ".join(by_target.get(target, "") for target in targets) + " |")
    return lines


def _made(read: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {read['versions'][name]}" for name in ("art", "torch"))
    return (
        f"Images still right / images attacked. Made by `{read['command']}` (seed {read['seed']}, {versions}; "
        f"{read['hardware']['processor']}) on `{read['data']}`."
    )


def modern_table(record: Path) -> str:
    """Accuracy under images from standard and from defective sources, from the record of ``modern_transfer``."""
    if not record.is_file():
        return "There is no committed record of it yet.\n"
    read: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    spec, run = read["spec"], read["run"]
    numbers = {(number["row"], number["column"]): number["ours"] for number in spec["numbers"]}
    rows, columns = (list(dict.fromkeys(place[at] for place in numbers)) for at in (0, 1))
    lines = ["| accuracy, in % | " + " | ".join(rows) + " |", "|:--|" + "--:|" * len(rows)]
    for column in columns:
        found = [numbers.get((row, column)) for row in rows]
        lines.append(f"| {column} | " + " | ".join("" if one is None else f"{one:.1f}" for one in found) + " |")
    scale = spec["scale"]
    source = (
        f"The columns are networks under attack; \"adaptive\" is a source with masks of its own. {spec['data']}, the first "
        f"{scale['images']} test images, width {scale['width']}, {scale['training']['epochs']} epochs, seed "
        f"{', '.join(map(str, spec['seeds']))}. Made by `{run['command']}`; more on its "
        "[page of the paper map](../paper/modern_transfer.md)."
    )
    return "\n".join([*lines, "", source]) + "\n"


def _distance(results: list[dict[str, Any]], attack: str, target: str) -> float:
    return float(next(r["median_distance"] for r in results if (r["attack"], r["target"]) == (attack, target)))


_INTRO = """# What was measured

Every figure on these pages comes from a record that is committed beside the script that made it, with command, seed,
versions and machine. The paper's tables are on the [paper map](../paper/map.md); what tools do to the
masks is on [interoperability](../interop.md).
"""
