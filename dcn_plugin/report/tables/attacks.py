"""Tables of attacks with gradients: transfer (rows and matrices), TAPM, white-box."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.report.aggregate import Cell, Matrix, cells, matrices
from dcn_plugin.report.tables.columns import (
    ATTACK,
    COUNTS,
    DATA,
    ENVELOPE,
    ROUNDING,
    SOURCE,
    Column,
    context_of,
    counts_of,
    dash_note,
    joined,
    only,
    table_rows,
    varied,
)
from dcn_plugin.support.number_format import DASH, counted, interval, listed, number, percent
from dcn_plugin.support.table import Table

__all__ = ["matrix_mark", "matrix_title", "tapm_tables", "transfer_tables", "whitebox_tables"]

RELATIONS = (
    "Source is: same network = white-box (the source is the network, holds it or lies within it); other weights or "
    "other masks = gray-box (same structure, another training run or masks drawn anew, or weights in common); other "
    "network = black-box."
)
_ROBUST = ("clean", "robust accuracy", "95 %", "held / images")
_MARKS = {"same network": "(w)", "other weights": "(g)", "other masks": "(g)"}


def transfer_tables(results: Sequence[Result]) -> list[Table]:
    """What the attack did to its source; the matrices, where there are several sources; every setting with counts."""
    found = cells(results, protocol="transfer")
    squares = [table for matrix in matrices(results) for table in _matrix_tables(matrix)]
    return [_source_table(found), *squares, _rows_table(found)]


def tapm_tables(results: Sequence[Result]) -> list[Table]:
    """The worst of all sources and attacks."""
    found = cells(results, protocol="tapm")
    strength = "eps" if any(cell.eps is not None for cell in found) else None
    columns = context_of(found, strength=strength, relation="closest source is")
    settings = [run.attack_settings for cell in found for run in cell.runs]
    sources, attacks = (
        dict.fromkeys(str(setting[key]) for setting in settings if key in setting) for key in ("sources", "attacks")
    )
    names = [attack.partition("(")[0] for attack in "; ".join(attacks).split("; ")]
    brief = len(set(names)) == len(names)

    def figures(cell: Cell) -> tuple[str, ...]:
        which = dict.fromkeys(str(run.figures.get("worst_single") or DASH) for run in cell.runs)
        # The settings stand in the note; they are repeated only where the name alone would not do.
        said = [re.sub(r"\(.*\)$", "", worst, flags=re.DOTALL) if brief else _tidy(worst) for worst in which]
        return (*_robust(cell), percent(cell.figure("worst_single_accuracy")), " or ".join(dict.fromkeys(said)))

    return [
        Table(
            "Worst of all transfer attacks (TAPM)",
            (*(column.header for column in columns), *_ROBUST, "worst single", "its source and attack"),
            table_rows(found, columns, figures),
            joined(
                "Robust accuracy: of all images, the share that is right when clean and under every source and attack. "
                "Worst single: the accuracy under the one source and attack that is worst as a whole.",
                f"Sources: {listed(sources, most=3)}." if sources else "",
                f"Attacks: {_tidy(listed(attacks, most=3))}." if attacks else "",
                RELATIONS if any(cell.relation for cell in found) else "",
                ENVELOPE,
                dash_note(found),
            ),
            "".join(column.side for column in columns) + "rrrrrl",
        )
    ]


def whitebox_tables(results: Sequence[Result]) -> list[Table]:
    """Every network attacked on itself."""
    found = cells(results, protocol="whitebox")
    columns = context_of(found, strength="eps", source=False)
    return [
        Table(
            "White-box attacks",
            (*(column.header for column in columns), *_ROBUST, "zero gradient"),
            table_rows(
                found,
                columns,
                lambda cell: (*_robust(cell), counted(cell.total("n_zero_gradient"), cell.total("n_total"))),
            ),
            joined(
                only(found, ATTACK),
                "Robust accuracy: of all images, the share that is right when clean and under an attack that knows the "
                "network. Zero gradient: images on which the loss had none at some step; there the attack stood still.",
                ENVELOPE,
                dash_note(found),
            ),
            "".join(column.side for column in columns) + "rrrrr",
        )
    ]  # fmt: skip


def matrix_title(matrix: Matrix, *, strength: bool = True) -> str:
    """Attack, strength and what else sets a matrix apart: "PGD, eps 8/255, 8-bit images"."""
    cell = matrix.example
    parts = [cell.attack or DASH]
    if strength and cell.eps is not None:
        parts.append(f"eps {number(cell.eps)}")
    if cell.rounding == "8bit":
        parts.append("8-bit images")
    return ", ".join(parts)


def matrix_mark(cell: Cell) -> str:
    """A mark for a cell whose source is the target itself, "(w)", or has the target's structure, "(g)"."""
    return _MARKS.get(cell.closest or "", "")


def _matrix_tables(matrix: Matrix) -> list[Table]:
    marked = any(matrix_mark(cell) for cell in matrix.cells.values())
    note = joined(
        f"In %, rows: attacked sources, columns: targets; images: {matrix.example.data}.",
        "(w): white-box, the source is or holds the target. (g): gray-box, the same structure with other weights or "
        "masks, or weights in common."
        if marked
        else "",
        dash_note(matrix.cells.values()),
    )

    def table(title: str, rate: str) -> Table:
        rows = []
        for source in matrix.sources:
            line = [matrix.cells.get((source, target)) for target in matrix.targets]
            texts = [
                DASH if cell is None else joined(percent(getattr(cell, rate), unit=""), matrix_mark(cell))
                for cell in line
            ]
            rows.append((source, *texts))
        return Table(f"{title}: {matrix_title(matrix)}", ("source", *matrix.targets), tuple(rows), note, detail=True)

    return [table("Defence rate", "defense"), table("Accuracy", "accuracy")]


def _rows_table(found: Sequence[Cell]) -> Table:
    columns = context_of(found, strength="eps", relation="source is")
    return Table(
        "Transfer attacks",
        (*(column.header for column in columns), "defence rate", *COUNTS),
        table_rows(found, columns, counts_of),
        joined(
            only(found, SOURCE, ATTACK),
            "Defence rate (the paper's): of the images that fooled the source and that the network classifies "
            "correctly when clean, the share it still gets right. Accuracy: of all images.",
            RELATIONS if any(cell.relation for cell in found) else "",
            ENVELOPE,
            dash_note(found),
        ),
        "".join(column.side for column in columns) + "r" * (1 + len(COUNTS)),
    )


def _source_table(found: Sequence[Cell]) -> Table:
    # The targets of one set of adversarial images all carry the counts of its source.
    sets: dict[object, Cell] = {}
    for cell in found:
        sets.setdefault((*cell.condition, cell.strength), cell)
    shown = list(sets.values())
    columns = [SOURCE, ATTACK, *varied(shown, ROUNDING, DATA), Column("eps", lambda cell: number(cell.eps), side="r")]

    def figures(cell: Cell) -> tuple[str, ...]:
        zero = cell.total("n_zero_gradient")
        fooled = counted(cell.total("n_source_fooled"), cell.total("n_source_correct"))
        return (fooled, DASH if zero is None else str(zero))

    return Table(
        "The attack on its source",
        (*(column.header for column in columns), "fooled / right when clean", "zero gradient"),
        table_rows(shown, columns, figures),
        "Zero gradient: images on which the source's loss had no gradient at some step; there the attack stood still.",
        "".join(column.side for column in columns) + "rr",
    )


def _robust(cell: Cell) -> tuple[str, ...]:
    return (
        percent(cell.clean),
        percent(cell.accuracy),
        interval(cell.accuracy_interval),
        counted(cell.total("n_correct"), cell.total("n_total")),
    )


def _tidy(text: str) -> str:
    """The same text with its long decimals as :func:`number` writes them."""
    return re.sub(r"\b\d+\.\d{5,}(e-?\d+)?", lambda match: number(float(match[0])), text)
