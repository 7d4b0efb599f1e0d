"""The report of Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.gaussian import PROTOCOL
from dcn_plugin.report.aggregate import Cell, cells_of
from dcn_plugin.report.figures import rate_figure
from dcn_plugin.report.html import Figure
from dcn_plugin.report.protocols.changed_images import change_table
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.support.table import Table

__all__ = ["PART", "PROTOCOL"]


def _strength(cells: Sequence[Cell]) -> str:
    """What the strength of these noises is: "sigma", "eps" for clipped noise, "level" for a mixture."""
    kinds = {run.attack for cell in cells for run in cell.runs}
    clipped = "gaussian-clipped" in kinds
    return "sigma" if not clipped else "eps" if len(kinds) == 1 else "level"


def _tables(results: Sequence[Result]) -> list[Table]:
    rows = cells_of(results, PROTOCOL)
    strength = _strength(rows)
    remark = "" if strength == "sigma" else "Clipped noise: sigma = eps / 2, cut at eps."
    return [change_table(PROTOCOL.title, rows, strength=strength, remark=remark)]


def _figures(results: Sequence[Result]) -> list[Figure]:
    strength = _strength(cells_of(results, PROTOCOL))
    caption = f"Accuracy on all images under Gaussian noise; at {strength} 0 the clean accuracy."
    return rate_figure(results, PROTOCOL, "accuracy", strength, "accuracy, all images (%)", caption)


PART = ReportPart(
    name=PROTOCOL.record,
    heading=PROTOCOL.title,
    tables=_tables,
    figures=_figures,
    subject=lambda _: PROTOCOL.title,
    strength=_strength,
)
