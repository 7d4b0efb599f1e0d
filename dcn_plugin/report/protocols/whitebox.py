"""The report of white-box attacks: every network attacked on itself."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.whitebox import PROTOCOL
from dcn_plugin.report.aggregate import cells_of
from dcn_plugin.report.figures import rate_figure
from dcn_plugin.report.html import Figure
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import ATTACK, ROBUST, context_of, numeric, only, passes, rate_table, total
from dcn_plugin.support.table import Table

__all__ = ["PART"]


def _tables(results: Sequence[Result]) -> list[Table]:
    rows = cells_of(results, PROTOCOL)
    columns = [
        *context_of(rows, strength="eps", source=False),
        *ROBUST,
        numeric("zero gradient", lambda cell: total(cell, "n_zero_gradient")),
        *passes(rows),
    ]
    meaning = (
        "Robust accuracy: of all images, the share that is right when clean and under an attack that knows the "
        "network. Zero gradient: images on which the loss had none at some step; there the attack stood still. "
        "Passes: of the attack, for each image."
    )
    return [rate_table(PROTOCOL.title, rows, columns, only(rows, ATTACK), meaning)]


def _figures(results: Sequence[Result]) -> list[Figure]:
    caption = "Robust accuracy under white-box attacks; at eps 0 the clean accuracy."
    return rate_figure(results, PROTOCOL, "accuracy", "eps", "robust accuracy (%)", caption, single=False)


PART = ReportPart(
    protocol=PROTOCOL,
    heading="White-box",
    tables=_tables,
    figures=_figures,
    subject=lambda cell: f"White-box {cell.attack}",
    strength=lambda _: "eps",
)
