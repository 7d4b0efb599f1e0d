"""The report of stylised images."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.stylized import PROTOCOL
from dcn_plugin.report.aggregate import cells_of
from dcn_plugin.report.protocols.changed_images import change_table
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.support.table import Table

__all__ = ["PART", "PROTOCOL"]


def _tables(results: Sequence[Result]) -> list[Table]:
    return [change_table(PROTOCOL.title, cells_of(results, PROTOCOL), note="The same pictures in another texture.")]


PART = ReportPart(name=PROTOCOL.record, heading=PROTOCOL.title, tables=_tables, subject=lambda _: PROTOCOL.title)
