"""The table on the README's first screen, from the record of table 5: ``python -m docs._build.readme_table`` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcn_plugin.experiments.scales import scale_for
from dcn_plugin.support.atomic_file import write_atomic
from docs._build.folders import RECIPES

__all__ = ["COLUMNS", "ROWS", "readme_table", "with_table"]

README = RECIPES.parent / "README.md"
RECORD = RECIPES / "table05" / "record.json"
BEGIN, END = "<!-- table: python -m docs._build.readme_table -->", "<!-- end of the table -->"
ROWS = {
    "Standard": "standard ResNet-18",
    "0.5-Bottom": "defective, p = 0.5",
    "0.3-Bottom": "defective, p = 0.3",
    "0.1-Bottom": "defective, p = 0.1",
}
COLUMNS = {"clean": "clean images", "fgsm16": "FGSM 16/255, transferred", "pgd16": "PGD 16/255, transferred"}


def readme_table(record: Mapping[str, Any]) -> str:
    """Accuracy of every row, ours and in brackets the paper's, and under it how the networks were made.

    Args:
        record: of recipe ``table05``.
    """
    spec = record["spec"]
    numbers = {(number["row"], number["column"]): number for number in spec["numbers"]}
    lines = [f"| accuracy, % | {' | '.join(COLUMNS.values())} |", f"|:--|{'--:|' * len(COLUMNS)}"]
    for row, name in ROWS.items():
        cells = (numbers[row, column] for column in COLUMNS)
        texts = (f"{cell['ours']:.0f} ({cell['paper']:.0f})" for cell in cells)
        lines.append(f"| {name} | {' | '.join(texts)} |")
    scale, paper = spec["scale"], scale_for("full", "cifar10")
    sources = ", ".join(sorted({result["source"] for result in record["results"] if result["source"]}))
    seeds = f"{len(spec['seeds'])} seed{'s' if len(spec['seeds']) > 1 else ''}"
    return "\n".join(
        [
            *lines,
            "",
            f"Ours, and in brackets the paper's. Ours: {spec['data']}, width {scale['width']}, "
            f"{scale['training']['epochs']} epochs, {seeds}, {scale['images']:,} test images;",
            f"the paper's: width {paper.width}, {paper.training.epochs} epochs. The adversarial images are made on a standard "
            f"{sources}. Small networks",
            "pay more clean accuracy for their masks. The [record](recipes/table05/record.json) has every number, and the paper",
            "map of the site (`make docs`) shows every effect beside the paper's.",
        ]
    )


def with_table(text: str, record: Mapping[str, Any]) -> str:
    """The README with the table of this record between its two marks."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{readme_table(record)}\n\n{END}{after}"


if __name__ == "__main__":
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    write_atomic(README, with_table(README.read_text(encoding="utf-8"), record))
