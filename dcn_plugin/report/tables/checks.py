"""The tables of checks for gradient masking."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.report.aggregate import Cell, cells
from dcn_plugin.report.tables.columns import ATTACK, DATA, NETWORK, Column, joined, table_rows, varied
from dcn_plugin.support.number_format import DASH, number, value
from dcn_plugin.support.table import Table

__all__ = ["FAIL", "PASS", "UNKNOWN", "sanity_tables", "verdict"]

PASS, FAIL, UNKNOWN = "pass", "FAIL", "unknown"

_NOTE = (
    "FAIL: a known sign that gradients mislead the attack, so that figures of gradient attacks look better than the "
    "network is. Unknown: the check could not decide."
)


def verdict(cell: Cell) -> str:
    """Over the runs: one failure is a failure, one verdict that is missing is unknown."""
    given = {run.passed for run in cell.runs}
    return FAIL if False in given else UNKNOWN if None in given else PASS


def sanity_tables(results: Sequence[Result]) -> list[Table]:
    """Verdicts of several networks at a glance; then one row a network and check, with the figures it rests on."""
    found = cells(results, protocol="sanity")
    glance = _glance(found)
    return [*([glance] if glance else []), _rows(found)]


def _glance(found: Sequence[Cell]) -> Table | None:
    """Networks down, checks across; None for one network, or where a check was made in several ways."""
    verdicts = {(cell.target, cell.attack or DASH): verdict(cell) for cell in found}
    networks, checks = (list(dict.fromkeys(pair[k] for pair in verdicts)) for k in (0, 1))
    if len(networks) < 2 or len(verdicts) < len(found):
        return None
    rows = tuple((name, *(verdicts.get((name, check), DASH) for check in checks)) for name in networks)
    return Table("Verdicts", ("network", *checks), rows, _NOTE, "l" * (1 + len(checks)))


def _rows(found: Sequence[Cell]) -> Table:
    columns = [NETWORK, *varied(found, DATA), Column("check", ATTACK.read)]
    if len({(cell.target, cell.attack, cell.data) for cell in found}) < len(found):
        columns.append(Column("eps", lambda cell: number(cell.eps), side="r"))
    several = any(len(cell.runs) > 1 for cell in found)

    def figures(cell: Cell) -> tuple[str, ...]:
        passed = f"{sum(run.passed is True for run in cell.runs)} / {len(cell.runs)}"
        return (verdict(cell), *([passed] if several else []), _figures(cell))

    return Table(
        "Checks for gradient masking",
        (*(column.header for column in columns), "verdict", *(["runs passed"] if several else []), "figures"),
        table_rows(found, columns, figures),
        joined(_NOTE, "Figures are means over the runs." if several else ""),
        "".join(column.side for column in columns) + "l" + "r" * several + "l",
    )


def _figures(cell: Cell) -> str:
    parts = []
    for name in dict.fromkeys(name for run in cell.runs for name in run.figures):
        known = cell.figure(name)
        words = dict.fromkeys(value(run.figures.get(name)) for run in cell.runs)
        parts.append(f"{name.removeprefix('n_').replace('_', ' ')} {value(known.mean) if known else ' / '.join(words)}")
    return ", ".join(parts) or DASH
