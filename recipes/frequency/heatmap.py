"""The record of this recipe as a heat map: networks across, attacks and their cut-offs down.

::

    python -m recipes.frequency.heatmap recipe-runs/frequency/small/record.json frequency.png
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dcn_plugin.evaluate import ResultFile
from dcn_plugin.support.atomic_file import write_atomic

CELL_WIDTH, CELL_HEIGHT = 1.1, 0.34


def accuracies(record: ResultFile) -> Mapping[tuple[str, str], float]:
    """(column, row) of the table -> accuracy in percent; the clean accuracy stands in the column "clean"."""
    return {
        (number["column"], number["row"]): number["ours"]
        for number in record.spec["numbers"]
        if number["ours"] is not None
    }


def heatmap_png(record: ResultFile) -> bytes:
    """Draw it: dark is an attack that gets through. The number in each cell is the accuracy in percent.

    It needs matplotlib, which the extra "report" brings.
    """
    from matplotlib.figure import Figure  # not pyplot, which could ask for a display

    values = accuracies(record)
    columns, rows = (list(dict.fromkeys(pair[place] for pair in values)) for place in (0, 1))
    table = np.array([[values.get((column, row), np.nan) for row in rows] for column in columns])
    size = (CELL_WIDTH * len(rows) + 3.4, CELL_HEIGHT * len(columns) + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#dddddd")  # what was not measured
    image = axes.imshow(table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(rows)), rows)
    axes.set_yticks(range(len(columns)), columns)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for place, value in np.ndenumerate(table):
        if not np.isnan(value):
            color = "black" if value > 50 else "white"
            axes.text(place[1], place[0], f"{value:.1f}", ha="center", va="center", color=color, fontsize=9)
    bar = figure.colorbar(image, ax=axes, label="accuracy, all images (%)", fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=180, metadata={"Software": None})
    return picture.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="record.json of a run of the recipe")
    parser.add_argument("picture", type=Path, help="the PNG that is written")
    args = parser.parse_args()
    write_atomic(args.picture, heatmap_png(ResultFile.read(args.record)))


if __name__ == "__main__":
    main()
