"""The records by protocol, in the order of a report, each with its part of it."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols import protocol_of
from dcn_plugin.report.protocols import PARTS, ReportPart, general_part
from dcn_plugin.report.tables import clean_table
from dcn_plugin.support.table import Table

__all__ = ["families", "result_tables"]


def families(results: Sequence[Result]) -> list[tuple[ReportPart, list[Result]]]:
    """The parts that have records, with these: protocols that are known in a fixed order, others as they appear."""
    known: dict[str, list[Result]] = {name: [] for name in PARTS}
    others: dict[str, list[Result]] = {}
    for result in results:
        protocol = protocol_of(result)
        (others.setdefault(result.protocol, []) if protocol is None else known[protocol.name]).append(result)
    return [(PARTS[name], records) for name, records in known.items() if records] + [
        (general_part(name), records) for name, records in others.items()
    ]


def result_tables(results: Sequence[Result]) -> list[Table]:
    """Every table that the records have something for."""
    tables = [clean_table(results), *(table for part, records in families(results) for table in part.tables(records))]
    return [table for table in tables if table.rows]
