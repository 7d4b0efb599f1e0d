"""The report of images with the Fourier amplitude of another."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.amplitude import PROTOCOL
from dcn_plugin.report.aggregate import cells_of
from dcn_plugin.report.protocols.changed_images import change_table
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import numeric
from dcn_plugin.support.number_format import percent
from dcn_plugin.support.table import Table

__all__ = ["PART", "PROTOCOL"]


def _tables(results: Sequence[Result]) -> list[Table]:
    lured = numeric("amplitude's class", lambda cell: percent(cell.figure("amplitude_class_rate")))
    note = "Phase (shape) of one image, Fourier amplitude (texture) of one of another class."
    return [change_table(PROTOCOL.title, cells_of(results, PROTOCOL), columns=[lured], note=note)]


PART = ReportPart(name=PROTOCOL.record, heading=PROTOCOL.title, tables=_tables, subject=lambda _: PROTOCOL.title)
