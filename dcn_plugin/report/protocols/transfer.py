"""The report of transfer attacks: what they did to their source, the matrices, every setting with its counts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.transfer import PROTOCOL
from dcn_plugin.report.aggregate import Cell, Matrix, cells_of
from dcn_plugin.report.figures import rate_figure
from dcn_plugin.report.html import Figure
from dcn_plugin.report.plots import Rate, heatmap_png, rate_of
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import (
    ATTACK,
    DATA,
    EPS,
    RELATIONS,
    ROUNDING,
    SOURCE,
    cell_table,
    context_of,
    counts,
    dash_note,
    joined,
    numeric,
    only,
    rate_table,
    total,
    varied,
)
from dcn_plugin.support.number_format import DASH, listed, number, percent, value
from dcn_plugin.support.table import Table

__all__ = ["PART", "matrices"]

_MARKS = {"same network": "(w)", "other weights": "(g)", "other masks": "(g)"}
_FRAMES = (
    "Solid frame: white-box, the source is or holds the target; dashed: gray-box, the same structure, or weights in "
    "common."
)
_DEFENSE = (
    "Defence rate: of the images that fooled the source and that the network has right when clean, the share it still "
    "gets right."
)
_AXES: dict[Rate, str] = {"defense": "defence rate (%)", "accuracy": "accuracy, all images (%)"}


def matrices(results: Sequence[Result]) -> list[Matrix]:
    """The transfer matrices: one an attack, strength, image set and rounding that at least two sources share.

    Strengths of one attack stand side by side, in the order of the attacks' first appearance.
    """
    groups: dict[object, dict[tuple[str, str], Cell]] = {}
    for cell in cells_of(results, PROTOCOL):
        pair = (str(cell.source), cell.target)
        setting = (*Matrix({pair: cell}).family, cell.strength)
        groups.setdefault(setting, {})[pair] = cell
    several = [matrix for matrix in map(Matrix, groups.values()) if len(matrix.sources) > 1]
    attacks = list(dict.fromkeys(matrix.family for matrix in several))
    return sorted(several, key=lambda matrix: attacks.index(matrix.family))


def _tables(results: Sequence[Result]) -> list[Table]:
    cells = cells_of(results, PROTOCOL)
    squares = [table for matrix in matrices(results) for table in _matrix_tables(matrix)]
    return [_source_table(cells), *squares, _rows_table(cells)]


def _source_table(cells: Sequence[Cell]) -> Table:
    # The targets of one set of adversarial images all carry the counts of its source.
    sets: dict[object, Cell] = {}
    for cell in cells:
        sets.setdefault((*cell.condition, cell.strength), cell)
    rows = list(sets.values())
    columns = [
        SOURCE,
        ATTACK,
        *varied(rows, ROUNDING, DATA),
        EPS,
        numeric("fooled / right when clean", lambda cell: total(cell, "n_source_fooled", "n_source_correct")),
        numeric("zero gradient", lambda cell: value(cell.total("n_zero_gradient"))),
    ]
    notes = [
        "Zero gradient: images on which the source's loss had no gradient at some step; there the attack stood still."
    ]
    if any(_asked(cell) != DASH for cell in rows):
        columns.append(numeric("target queries", _asked))
        notes.append("Target queries: images that a target was asked about to train the source on its answers.")
    return cell_table("The attack on its source", rows, columns, *notes)


def _asked(cell: Cell) -> str:
    """What the answers cost that a source was trained on; a dash where it was trained on none."""
    asked = cell.figure("target_queries")
    return DASH if asked is None else f"{asked.mean:.0f}"


def _matrix_tables(matrix: Matrix) -> list[Table]:
    marked = any(_mark(cell) for cell in matrix.cells.values())
    note = joined(
        f"In %, rows: attacked sources, columns: targets; images: {matrix.example.data}.",
        "(w): white-box, the source is or holds the target. (g): gray-box, the same structure with other weights or "
        "masks, or weights in common."
        if marked
        else "",
        dash_note(matrix.cells.values()),
    )

    def text(cell: Cell | None, rate: Rate) -> str:
        return DASH if cell is None else joined(percent(rate_of(cell, rate), unit=""), _mark(cell))

    def table(title: str, rate: Rate) -> Table:
        rows = (
            (source, *(text(matrix.cells.get((source, target)), rate) for target in matrix.targets))
            for source in matrix.sources
        )
        return Table(f"{title}: {_title(matrix)}", ("source", *matrix.targets), tuple(rows), note, detail=True)

    return [table("Defence rate", "defense"), table("Accuracy", "accuracy")]


def _rows_table(cells: Sequence[Cell]) -> Table:
    return rate_table(
        PROTOCOL.title,
        cells,
        [*context_of(cells, strength="eps", relation="source is"), *counts("defence rate")],
        only(cells, SOURCE, ATTACK),
        "Defence rate (the paper's): of the images that fooled the source and that the network classifies "
        "correctly when clean, the share it still gets right. Accuracy: of all images.",
        RELATIONS if any(cell.relation for cell in cells) else "",
    )


def _title(matrix: Matrix, *, strength: bool = True) -> str:
    """Attack, strength and what else sets a matrix apart: "PGD, eps 8/255, 8-bit images"."""
    cell = matrix.example
    parts = [cell.attack or DASH]
    if strength and cell.eps is not None:
        parts.append(f"eps {number(cell.eps)}")
    if cell.rounding == "8bit":
        parts.append("8-bit images")
    return ", ".join(parts)


def _mark(cell: Cell) -> str:
    """A mark for a cell whose source is the target itself, "(w)", or has the target's structure, "(g)"."""
    return _MARKS.get(cell.closest or "", "")


def _figures(results: Sequence[Result]) -> list[Figure]:
    return [*_heatmaps(results), *_lines(results)]


def _heatmaps(results: Sequence[Result]) -> list[Figure]:
    figures = []
    families: dict[object, list[Matrix]] = {}
    for matrix in matrices(results):
        families.setdefault(matrix.family, []).append(matrix)
    captions: dict[Rate, str] = {"defense": _DEFENSE, "accuracy": "Accuracy on all images."}
    for rate, caption in captions.items():
        for place, group in enumerate(families.values(), 1):
            cells = [cell for matrix in group for cell in matrix.cells.values()]
            if not any(rate_of(cell, rate) for cell in cells):
                continue
            frames = _FRAMES if any(cell.relation not in (None, "other network") for cell in cells) else ""
            title = _title(group[0], strength=len(group) == 1)
            figures.append(
                Figure(
                    f"matrix_{rate}_{place:02d}",
                    heatmap_png(group, rate=rate, label=_AXES[rate]),
                    " ".join(_matrix_alt(matrix, rate) for matrix in group),
                    f"{title}; {group[0].example.data}. {caption} {frames}".strip(),
                    folded=rate == "accuracy",
                )
            )
    return figures


def _matrix_alt(matrix: Matrix, rate: Rate) -> str:
    lines: dict[str, list[str]] = {}
    for (source, target), cell in matrix.cells.items():
        lines.setdefault(source, []).append(f"{target} {percent(rate_of(cell, rate))}")
    rows = "; ".join(f"source {source}: {', '.join(shares)}" for source, shares in lines.items())
    name = "accuracy" if rate == "accuracy" else "defence rate"
    return f"Heat map of the {name}, {_title(matrix)}. {rows}."


def _lines(results: Sequence[Result]) -> list[Figure]:
    """A figure an attack and rate, a panel a source; where a heat map shows it, one strength makes no line."""
    cells = cells_of(results, PROTOCOL)
    attacks = list(dict.fromkeys(cell.attack for cell in cells))
    captions: dict[Rate, str] = {
        "accuracy": "Accuracy on all images after a transfer attack; at eps 0 the clean accuracy.",
        "defense": _DEFENSE,
    }
    figures = []
    for rate, caption in captions.items():
        for attack in attacks:
            several = len(attacks) > 1
            attacked = [cell for cell in cells if cell.attack == attack]
            runs = [run for cell in attacked for run in cell.runs]
            name = f"{PROTOCOL.name}_{rate}" + (f"_{_slug(str(attack))}" if several else "")
            words = f"{attack}. {caption}" if several else caption
            inside = [f"{cell.target} on {cell.source}" for cell in attacked if cell.no_transfer]
            words += f" White-box, no transfer: {listed(inside)}." if inside else ""
            mapped = bool(matrices(runs))
            folded = mapped and rate == "defense"
            figures += rate_figure(
                runs, PROTOCOL, rate, "eps", _AXES[rate], words, name=name, single=not mapped, folded=folded
            )
    return figures


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


PART = ReportPart(
    protocol=PROTOCOL,
    heading="Transfer",
    tables=_tables,
    figures=_figures,
    subject=lambda cell: f"{cell.attack} on {cell.source}",
    strength=lambda _: "eps",
)
