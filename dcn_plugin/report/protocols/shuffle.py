"""The report of shuffled patches. There a low accuracy may be the better one, so that nothing is compared."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.shuffle import PROTOCOL
from dcn_plugin.report.aggregate import cells_of
from dcn_plugin.report.figures import rate_figure
from dcn_plugin.report.html import Figure
from dcn_plugin.report.protocols.changed_images import change_table
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.support.table import Table

__all__ = ["PART", "PROTOCOL"]

_TITLE = "Patch shuffle"
_NOTE = (
    "The image is cut into k x k patches that are permuted: texture stays, shape goes, so a LOW figure speaks for "
    "shape; a guess gets one in the number of classes right."
)


def _tables(results: Sequence[Result]) -> list[Table]:
    return [change_table(_TITLE, cells_of(results, PROTOCOL), strength="k", note=_NOTE)]


def _figures(results: Sequence[Result]) -> list[Figure]:
    caption = "Accuracy on all images whose k x k patches are shuffled; at k = 1 the clean accuracy."
    xlabel = "k (patches along either axis)"
    return rate_figure(results, PROTOCOL, "accuracy", xlabel, "accuracy, all images (%)", caption)


PART = ReportPart(name=PROTOCOL.record, heading=_TITLE, tables=_tables, figures=_figures, strength=lambda _: "k")
