"""The report of AutoAttack: the robust accuracy of every network, and whether it is the published attack."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.autoattack import PROTOCOL
from dcn_plugin.report.aggregate import Cell, cells_of
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import ROBUST, Column, context_of, passes, rate_table
from dcn_plugin.support.number_format import DASH
from dcn_plugin.support.table import Table

__all__ = ["PART"]

STEPS = 100


def _tables(results: Sequence[Result]) -> list[Table]:
    rows = cells_of(results, PROTOCOL)
    columns = [
        *context_of(rows, strength="eps", source=False),
        Column("norm", lambda cell: _setting(cell, "norm")),
        *ROBUST,
        *passes(rows),
    ]
    versions = dict.fromkeys(_setting(cell, "version") for cell in rows)
    steps = dict.fromkeys(_setting(cell, "steps") for cell in rows)
    meaning = (
        "Robust accuracy: of all images, the share that is right when clean and after APGD-CE, APGD-T, FAB-T and "
        f"Square, as RobustBench defines it. Version: {', '.join(versions)}. Passes: of the attack, for each image, an "
        "upper bound."
    )
    short = "" if list(steps) == [str(STEPS)] else f"Steps: {', '.join(steps)}; the published attack takes {STEPS}."
    return [rate_table(PROTOCOL.title, rows, columns, meaning, short)]


def _setting(cell: Cell, name: str) -> str:
    values = dict.fromkeys(str(run.attack_settings.get(name, DASH)) for run in cell.runs)
    return " / ".join(values)


PART = ReportPart(
    protocol=PROTOCOL,
    heading="AutoAttack",
    tables=_tables,
    subject=lambda cell: f"AutoAttack ({_setting(cell, 'norm')})",
    strength=lambda _: "eps",
)
