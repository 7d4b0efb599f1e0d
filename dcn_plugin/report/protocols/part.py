"""What a report says of one protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocol import Protocol
from dcn_plugin.report.aggregate import Cell
from dcn_plugin.report.html import Figure
from dcn_plugin.support.table import Table

__all__ = ["ReportPart"]


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
