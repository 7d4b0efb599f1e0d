"""Tables of a report, looked up as a reader does."""

from __future__ import annotations

from dcn_plugin.evaluate import Result
from dcn_plugin.report import Table, result_tables


def table(title: str, *results: Result) -> Table:
    return {table.title: table for table in result_tables(results)}[title]


def column(table: Table, header: str) -> list[str]:
    return [row[table.headers.index(header)] for row in table.rows]
