"""The report of robust accuracy over eps from one run."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.curve import PROTOCOL
from dcn_plugin.report.aggregate import cells_of
from dcn_plugin.report.figures import rate_figure
from dcn_plugin.report.html import Figure
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import ATTACK, ROBUST, context_of, numeric, only, passes, rate_table
from dcn_plugin.support.number_format import DASH, value
from dcn_plugin.support.table import Table

__all__ = ["PART"]


def _tables(results: Sequence[Result]) -> list[Table]:
    rows = cells_of(results, PROTOCOL)
    never = [cell.figure("n_not_fooled") for cell in rows]
    columns = [*context_of(rows, strength="eps", source=False), *ROBUST]
    if any(count is not None and count.high > 0 for count in never):
        columns.append(numeric("never fooled", lambda cell: _count(cell.figure("n_not_fooled"))))
    columns += passes(rows)
    meaning = (
        "Robust accuracy: of all images, the share that is right when clean and for which an attack without a bound, "
        "which knows the network, found no adversarial image within eps. All radii come from one run. Never fooled: "
        "images for which it found none at any distance, which is the attack's failure. Passes: of the attack, for "
        "each image."
    )
    return [rate_table(PROTOCOL.title, rows, columns, only(rows, ATTACK), meaning)]


def _count(spread: object) -> str:
    mean = getattr(spread, "mean", None)
    return DASH if mean is None else value(mean)


def _figures(results: Sequence[Result]) -> list[Figure]:
    caption = (
        "Robust accuracy within eps, all radii from one run of an attack without a bound; at eps 0 the clean accuracy."
    )
    return rate_figure(results, PROTOCOL, "accuracy", "eps", "robust accuracy (%)", caption, single=False)


PART = ReportPart(
    protocol=PROTOCOL,
    heading="Over eps",
    tables=_tables,
    figures=_figures,
    subject=lambda cell: f"{cell.attack} without a bound",
    strength=lambda _: "eps",
)
