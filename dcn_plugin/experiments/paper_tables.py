"""The paper's numbers: one CSV a table, read into labelled rows."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcn_plugin.errors import DataError
from dcn_plugin.support.suggestions import closest

__all__ = ["PaperRow", "PaperTable", "paper_numbers"]

CLEAN = "clean"


@dataclass(frozen=True)
class PaperRow:
    """One row of a table.

    Args:
        label: its text columns joined by a space, without the mark of an inferred label; a label that stands there
            again with other numbers gets " (2)", " (3)" and so on.
        values: column -> number, None where the paper has none.
        inferred: the label is our reading: the paper's text lost it.
    """

    label: str
    values: Mapping[str, float | None]
    inferred: bool = False


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Args:
        name: of its file, without the ending.
        comment: the file's first line: what the table shows, and what is inferred.
        columns: names of the columns with numbers, without the mark of inferred ones.
        inferred_columns: those of them whose meaning is our reading.
        rows: in the paper's order, each label once.
    """

    name: str
    comment: str
    columns: tuple[str, ...]
    inferred_columns: frozenset[str]
    rows: tuple[PaperRow, ...]

    def row(self, label: str) -> PaperRow | None:
        """The row of this label, if there is one."""
        return next((row for row in self.rows if row.label == label), None)


def paper_numbers(table: str, folder: str | os.PathLike[str]) -> PaperTable:
    """Read one number file.

    Args:
        table: name of the file without ".csv", e.g. "table05_ablation".
        folder: where the files lie: ``recipes/paper_numbers``.

    Raises:
        DataError: there is no such file (the nearest names are in the message), or it is no table.
    """
    path = Path(folder) / f"{table}.csv"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        there = sorted(file.stem for file in Path(folder).glob("*.csv"))
        raise DataError(
            "There is no such file of paper numbers.",
            str(path),
            "one of the files of recipes/paper_numbers",
            closest(table, there) or "they come with the repository, not with the installed package",
        ) from None
    lines = text.splitlines()
    if len(lines) < 3 or not lines[0].startswith("#"):
        raise DataError(f"{path} is no table of numbers.", lines[:1], "a comment, a header, rows")
    header, *body = csv.reader(lines[1:])
    if any(len(row) != len(header) for row in body):
        raise DataError(f"{path} has rows of another length than its header.", len(header))
    words = [place for place in range(len(header)) if any(_number(row[place]) is None and row[place] for row in body)]
    numbers = [place for place in range(len(header)) if place not in words]
    return PaperTable(
        name=table,
        comment=lines[0].lstrip("# "),
        columns=tuple(header[place].rstrip("*") for place in numbers),
        inferred_columns=frozenset(header[place].rstrip("*") for place in numbers if header[place].endswith("*")),
        rows=_labelled(body, header, words, numbers),
    )


def _labelled(
    body: Sequence[Sequence[str]], header: Sequence[str], words: Sequence[int], numbers: Sequence[int]
) -> tuple[PaperRow, ...]:
    rows: list[PaperRow] = []
    seen: dict[str, list[Mapping[str, float | None]]] = {}
    for cells in body:
        plain = " ".join(cells[place].rstrip("*") for place in words)
        values = {header[place].rstrip("*"): _number(cells[place]) for place in numbers}
        others = seen.setdefault(plain, [])
        if values in others:  # table 5 shows the row "0.5-Bottom" twice
            continue
        others.append(values)
        label = plain if len(others) == 1 else f"{plain} ({len(others)})"
        rows.append(PaperRow(label, values, any(cells[place].endswith("*") for place in words)))
    return tuple(rows)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
