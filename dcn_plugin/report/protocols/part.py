"""What a report says of a protocol, and of one that it does not know."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocol import Protocol
from dcn_plugin.report.aggregate import GENERAL, Cell, cells
from dcn_plugin.report.html import Figure
from dcn_plugin.report.tables.columns import ATTACK, SOURCE, context_of, counts, numeric, only, rate_table
from dcn_plugin.support.number_format import value
from dcn_plugin.support.table import Table

__all__ = ["ReportPart", "general_part"]


@dataclass(frozen=True, kw_only=True)
class ReportPart:
    """The words, tables and figures of a protocol.

    Args:
        protocol: its words.
        heading: of its section.
        tables: its records -> at least one table, none of them empty.
        figures: its records -> figures, in order.
        subject: a cell -> what was done, at the start of a sentence: "PGD on resnet18".
        strength: its cells -> what their strength is called; None: they have none.
        sentences: records of any protocols, and the baseline, if there is one -> conclusions beyond the comparison of
            accuracies.
    """

    protocol: Protocol
    heading: str
    tables: Callable[[Sequence[Result]], list[Table]]
    figures: Callable[[Sequence[Result]], list[Figure]] = lambda _: []
    subject: Callable[[Cell], str] = lambda cell: cell.protocol
    strength: Callable[[Sequence[Cell]], str | None] = lambda _: None
    sentences: Callable[[Sequence[Result], str | None], list[str]] = lambda _, baseline: []

    @property
    def name(self) -> str:
        """Of its section: as in the records, where these share a name."""
        return self.protocol.record or self.protocol.name


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
    return [rate_table(title, rows, columns, only(rows, SOURCE, ATTACK), meaning)]


def _figure(name: str, cell: Cell) -> str:
    mean = cell.figure(name)
    if mean is not None:
        return value(mean.mean)
    return " / ".join(dict.fromkeys(value(run.figures.get(name)) for run in cell.runs))
