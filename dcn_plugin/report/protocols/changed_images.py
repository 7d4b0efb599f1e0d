"""The table that the reports of changed images share."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.report.aggregate import Cell
from dcn_plugin.report.tables.columns import ENVELOPE, Column, cell_table, context_of, counts, dash_note
from dcn_plugin.support.number_format import value
from dcn_plugin.support.table import Table

__all__ = ["change_table"]


def change_table(
    title: str,
    rows: Sequence[Cell],
    *,
    strength: str | None = None,
    columns: Sequence[Column] = (),
    note: str = "",
    remark: str = "",
) -> Table:
    """The share of the images that stay right when they are changed.

    Args:
        title: one line.
        rows: the cells.
        strength: header of the strength; None: there is none.
        columns: more of them, after the counts.
        note: what was done to the images.
        remark: what else a reader must know.
    """
    bounds = {run.attack_settings.get("confidence") for cell in rows for run in cell.runs} - {None}
    least = " / ".join(value(bound) for bound in sorted(bounds, key=str))
    confident = f", each with a probability of at least {least}" if least else ""
    return cell_table(
        title,
        rows,
        [*context_of(rows, strength=strength), *counts("still right"), *columns],
        note,
        f"Still right: of the images that every network classifies correctly when clean{confident}.",
        "Accuracy: of all images.",
        remark,
        ENVELOPE,
        dash_note(rows),
    )
