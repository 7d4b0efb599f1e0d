"""Figures of the report: a rate over a strength, examples, adversarial images; what each shows in words."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Examples, Result
from dcn_plugin.evaluate.protocol import Protocol
from dcn_plugin.report.aggregate import Cell
from dcn_plugin.report.html import Figure
from dcn_plugin.report.plots import AMPLIFIED, ImageGrid, Rate, examples_png, grid_png, rate_cells, rate_of, rate_png
from dcn_plugin.support.number_format import number, percent

__all__ = ["examples_figure", "grid_figures", "rate_figure"]

_BARS = "Lines: mean over the runs; small circles: single runs; bars: 95 % intervals (their envelope over the runs)."


def rate_figure(
    results: Sequence[Result],
    protocol: Protocol,
    rate: Rate,
    strength: str,
    label: str,
    caption: str,
    *,
    name: str | None = None,
    single: bool = True,
    folded: bool = False,
) -> list[Figure]:
    """The rate of a protocol over its strength; nothing without points, or (``single`` False) with one strength."""
    drawn = rate_cells(results, protocol=protocol.record, rate=rate)
    if len({cell.strength for cell in drawn}) < (1 if single else 2):
        return []
    png = rate_png(results, protocol=protocol.record, rate=rate, xlabel=strength, ylabel=label)
    wide = len({cell.condition for cell in drawn}) > 1
    alt = _lines_alt(drawn, rate, strength)
    return [Figure(name or protocol.record, png, alt, f"{caption} {_BARS}", wide=wide, folded=folded)]


def examples_figure(examples: Examples) -> Figure:
    """Example images with what every network says."""
    states = ", ".join(row.title for row in examples.rows)
    classes = ", ".join(map(str, examples.labels.tolist()))
    return Figure(
        "examples",
        examples_png(examples),
        f"Grid of {len(examples.labels)} images of the classes {classes} in the states {states}"
        + (f", then {len(examples.masks)} defect masks, white where a neuron is kept." if examples.masks else "."),
        f"{examples.chosen} Below each image: what every network says it is."
        + (" Last row: defect masks, white = kept." if examples.masks else ""),
        wide=True,
    )


def grid_figures(grids: Sequence[ImageGrid]) -> list[Figure]:
    """Adversarial images, one figure a set."""
    figures = []
    for place, grid in enumerate(grids, 1):
        shown = f"The first {len(grid.indices)} images on which the attack fooled its source"
        caption = f"{grid.title}. {shown}" + (
            f"; below, {AMPLIFIED} times the difference around mid-grey." if grid.clean is not None else "."
        )
        if grid.said is not None:
            caption += " Taken for: the class that the source says."
        places = ", ".join(map(str, grid.indices.tolist()))
        alt = f"{grid.title}: {', '.join(grid.rows)} images of the places {places} in the data set, side by side."
        figures.append(Figure(f"images_{place:02d}", grid_png(grid), alt, caption))
    return figures


def _lines_alt(cells: Sequence[Cell], rate: Rate, strength: str) -> str:
    """The plot in words: every line, point by point."""
    lines: dict[str, list[str]] = {}
    several = len({cell.condition for cell in cells}) > 1
    for cell in cells:
        setting = [None if cell.words.itself else cell.source, cell.attack] if several else []
        name = ", ".join([cell.target, *(part for part in setting if part)])
        lines.setdefault(name, []).append(f"{percent(rate_of(cell, rate))} at {number(cell.strength)}")
    title = "Accuracy" if rate == "accuracy" else "Defence rate"
    return f"{title} over {strength}. " + "; ".join(f"{name}: {', '.join(p)}" for name, p in lines.items()) + "."
