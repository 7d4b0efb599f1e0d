"""Columns that tables of cells share, each shown only where it tells rows apart, and the table made of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dcn_plugin.report.aggregate import Cell
from dcn_plugin.support.number_format import DASH, counted, interval, listed, number, percent
from dcn_plugin.support.table import Table

__all__ = ["ATTACK", "DATA", "EPS", "NETWORK", "RELATIONS", "ROBUST", "ROUNDING", "SOURCE", "Column", "cell_table",
           "context_of", "counts", "dash_note", "joined", "numeric", "only", "passes", "rate_table", "total",
           "varied"]  # fmt: skip

ENVELOPE = "Intervals are Wilson 95 %; over several runs, from the lowest lower to the highest upper bound."

RELATIONS = (
    "Source is: same network = white-box (the source is the network, holds it or lies within it); other weights or "
    "other masks = gray-box (same structure, another training run or masks drawn anew, or weights in common); other "
    "network = black-box."
)


@dataclass(frozen=True)
class Column:
    """A column of a table whose rows are cells.

    Args:
        header: its name.
        read: cell -> text.
        side: "l" or "r".
    """

    header: str
    read: Callable[[Cell], str]
    side: str = "l"


def numeric(header: str, read: Callable[[Cell], str]) -> Column:
    """A column of numbers."""
    return Column(header, read, "r")


def total(cell: Cell, part: str, base: str = "n_total") -> str:
    """A count out of another, each summed over the runs: "40 / 80"."""
    return counted(cell.total(part), cell.total(base))


NETWORK = Column("network", lambda cell: cell.target)
SOURCE = Column("source", lambda cell: cell.source or DASH)
ATTACK = Column("attack", lambda cell: cell.attack or DASH)
ROUNDING = Column("rounding", lambda cell: cell.rounding)
DATA = Column("data", lambda cell: cell.data)
EPS = numeric("eps", lambda cell: number(cell.eps))

ROBUST = (
    numeric("clean", lambda cell: percent(cell.clean)),
    numeric("robust accuracy", lambda cell: percent(cell.accuracy)),
    numeric("95 %", lambda cell: interval(cell.accuracy_interval)),
    numeric("held / images", lambda cell: total(cell, "n_correct")),
)
"""What is left of the accuracy where a wrong answer to the clean image counts as lost."""


def counts(rate: str) -> tuple[Column, ...]:
    """The rate of the counted images under a header, and the accuracy, each with its interval and its counts."""
    return (
        numeric(rate, lambda cell: percent(cell.defense)),
        numeric("95 %", lambda cell: interval(cell.defense_interval)),
        numeric("held / counted", lambda cell: total(cell, "n_defended", "n_counted")),
        numeric("accuracy", lambda cell: percent(cell.accuracy)),
        numeric("95 %", lambda cell: interval(cell.accuracy_interval)),
        numeric("right / images", lambda cell: total(cell, "n_correct")),
    )


def passes(cells: Sequence[Cell]) -> list[Column]:
    """Forward and backward passes an image of the attack; no column where no record has counted them."""
    named = {"forward passes": "n_forward_passes", "backward passes": "n_backward_passes"}
    return [
        numeric(header, functools.partial(_an_image, count))
        for header, count in named.items()
        if any(cell.total(count) is not None for cell in cells)
    ]


def _an_image(count: str, cell: Cell) -> str:
    sum_, images = cell.total(count), cell.total("n_total")
    return DASH if sum_ is None or not images else f"{sum_ / images:.1f}"


def varied(cells: Sequence[Cell], *columns: Column) -> list[Column]:
    """Those of the columns that tell rows apart."""
    return [column for column in columns if len({column.read(cell) for cell in cells}) > 1]


def context_of(
    cells: Sequence[Cell], *, strength: str | None, relation: str | None = None, source: bool = True
) -> list[Column]:
    """The columns that name the settings of these rows: the network, then what differs, then the strength.

    Args:
        cells: one a row.
        strength: header of the strength; None: no such column.
        relation: header of how source and target relate, shown where any record says it; None: no such column.
        source: show the source where there are several.
    """
    chosen = [NETWORK, *varied(cells, *([SOURCE] if source else []), ATTACK, ROUNDING, DATA)]
    if relation is not None and any(cell.relation for cell in cells):
        place = 1 + (SOURCE in chosen)
        chosen.insert(place, Column(relation, lambda cell: cell.relation or DASH))
    if strength is not None:
        chosen.append(numeric(strength, lambda cell: number(cell.strength)))
    return chosen


def cell_table(title: str, cells: Iterable[Cell], columns: Sequence[Column], *notes: str) -> Table:
    """A table of one row a cell, under those of the notes that say something."""
    rows = tuple(tuple(column.read(cell) for column in columns) for cell in cells)
    sides = "".join(column.side for column in columns)
    return Table(title, tuple(column.header for column in columns), rows, joined(*notes), sides)


def rate_table(title: str, cells: Sequence[Cell], columns: Sequence[Column], *notes: str) -> Table:
    """The same of rates, whose notes end with what their intervals are and why some have none."""
    return cell_table(title, cells, columns, *notes, ENVELOPE, dash_note(cells))


def dash_note(cells: Iterable[Cell]) -> str:
    """Why some rows have a dash in place of a rate: "–: no image counts (vgg16)."; empty if none has."""
    reasons: dict[str, list[str]] = {}
    for cell in cells:
        if cell.flaw:
            reasons.setdefault(cell.flaw, []).append(cell.target)
    return " ".join(f"{DASH}: {reason} ({listed(targets)})." for reason, targets in reasons.items())


def only(cells: Sequence[Cell], *columns: Column) -> str:
    """What is the same in every row and so has no column: "Source: resnet18. Attack: PGD."; not where it is nothing."""
    texts = {column.header: {column.read(cell) for cell in cells} for column in columns}
    same = {header: values.pop() for header, values in texts.items() if len(values) == 1}
    return " ".join(f"{header.capitalize()}: {text}." for header, text in same.items() if text != DASH)


def joined(*sentences: str) -> str:
    """Those of the sentences that say something, as one note."""
    return " ".join(sentence for sentence in sentences if sentence)
