"""Columns that every table of counts shares, each shown only where it tells rows apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dcn_plugin.report.aggregate import Cell
from dcn_plugin.support.number_format import DASH, counted, interval, listed, number, percent

__all__ = [
    "COUNTS",
    "ENVELOPE",
    "Column",
    "context_of",
    "counts_of",
    "dash_note",
    "joined",
    "only",
    "table_rows",
    "varied",
]

ENVELOPE = "Intervals are Wilson 95 %; over several runs, from the lowest lower to the highest upper bound."

COUNTS = ("95 %", "held / counted", "accuracy", "95 %", "right / images")


@dataclass(frozen=True)
class Column:
    """A column that names the setting of a row.

    Args:
        header: its name.
        read: cell -> text.
        side: "l" or "r".
    """

    header: str
    read: Callable[[Cell], str]
    side: str = "l"


NETWORK = Column("network", lambda cell: cell.target)
SOURCE = Column("source", lambda cell: cell.source or DASH)
ATTACK = Column("attack", lambda cell: cell.attack or DASH)
ROUNDING = Column("rounding", lambda cell: cell.rounding)
DATA = Column("data", lambda cell: cell.data)


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
        chosen.append(Column(strength, lambda cell: number(cell.strength), side="r"))
    return chosen


def table_rows(
    cells: Sequence[Cell], columns: Sequence[Column], figures: Callable[[Cell], tuple[str, ...]]
) -> tuple[tuple[str, ...], ...]:
    """One row a cell: its settings, then its figures."""
    return tuple((*(column.read(cell) for column in columns), *figures(cell)) for cell in cells)


def counts_of(cell: Cell) -> tuple[str, ...]:
    """The rate of the counted images, then :data:`COUNTS`."""
    return (
        percent(cell.defense),
        interval(cell.defense_interval),
        counted(cell.total("n_defended"), cell.total("n_counted")),
        percent(cell.accuracy),
        interval(cell.accuracy_interval),
        counted(cell.total("n_correct"), cell.total("n_total")),
    )


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
    same = {header: found.pop() for header, found in texts.items() if len(found) == 1}
    return " ".join(f"{header.capitalize()}: {text}." for header, text in same.items() if text != DASH)


def joined(*sentences: str) -> str:
    """Those of the sentences that say something, as one note."""
    return " ".join(sentence for sentence in sentences if sentence)
