"""What a report says of a protocol that it does not know: counts, and figures as they are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.report.aggregate import GENERAL, Cell, cells
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import (
    ATTACK,
    ENVELOPE,
    SOURCE,
    cell_table,
    context_of,
    counts,
    dash_note,
    numeric,
    only,
)
from dcn_plugin.support.number_format import value
from dcn_plugin.support.table import Table

__all__ = ["general_part"]


def general_part(protocol: str) -> ReportPart:
    """A section with one table."""
    title = f"Protocol {protocol}"
    words = dataclasses.replace(GENERAL, record=protocol)
    return ReportPart(protocol=words, heading=title, tables=functools.partial(_tables, title))


def _tables(title: str, results: Sequence[Result]) -> list[Table]:
    rows = cells(results, protocol=results[0].protocol)
    strength = "eps" if any(cell.eps is not None for cell in rows) else None
    names = dict.fromkeys(name for cell in rows for run in cell.runs for name in run.figures)
    columns = [
        *context_of(rows, strength=strength, relation="source is"),
        *counts("held"),
        *(numeric(name, functools.partial(_figure, name)) for name in names),
    ]
    meaning = "Held: of the counted images. Accuracy: of all images."
    return [cell_table(title, rows, columns, only(rows, SOURCE, ATTACK), meaning, ENVELOPE, dash_note(rows))]


def _figure(name: str, cell: Cell) -> str:
    mean = cell.figure(name)
    if mean is not None:
        return value(mean.mean)
    return " / ".join(dict.fromkeys(value(run.figures.get(name)) for run in cell.runs))
