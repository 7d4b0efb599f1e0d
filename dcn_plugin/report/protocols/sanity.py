"""The report of checks for gradient masking."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.sanity import PROTOCOL
from dcn_plugin.report.aggregate import FAIL, UNKNOWN, Cell, cells_of
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import ATTACK, DATA, EPS, NETWORK, Column, cell_table, numeric, varied
from dcn_plugin.support.number_format import DASH, listed, value
from dcn_plugin.support.table import Table

__all__ = ["PART"]

_NOTE = (
    "FAIL: a known sign that gradients mislead the attack, so that figures of gradient attacks look better than the "
    "network is. Unknown: the check could not decide."
)


def _tables(results: Sequence[Result]) -> list[Table]:
    """Verdicts of several networks at a glance; then one row a network and check, with the figures it rests on."""
    cells = cells_of(results, PROTOCOL)
    return [*_glance(cells), _rows(cells)]


def _glance(cells: Sequence[Cell]) -> list[Table]:
    """Networks down, checks across; nothing for one network, or where a check was made in several ways."""
    verdicts = {(cell.target, cell.attack or DASH): cell.verdict for cell in cells}
    networks, checks = (list(dict.fromkeys(pair[k] for pair in verdicts)) for k in (0, 1))
    if len(networks) < 2 or len(verdicts) < len(cells):
        return []
    rows = tuple((name, *(verdicts.get((name, check), DASH) for check in checks)) for name in networks)
    return [Table("Verdicts", ("network", *checks), rows, _NOTE, "l" * (1 + len(checks)))]


def _rows(cells: Sequence[Cell]) -> Table:
    columns = [NETWORK, *varied(cells, DATA), Column("check", ATTACK.read)]
    if len({(cell.target, cell.attack, cell.data) for cell in cells}) < len(cells):
        columns.append(EPS)
    columns.append(Column("verdict", lambda cell: cell.verdict))
    several = any(len(cell.runs) > 1 for cell in cells)
    if several:
        columns.append(
            numeric("runs passed", lambda cell: f"{sum(r.passed is True for r in cell.runs)} / {len(cell.runs)}")
        )
    columns.append(Column("figures", _figures))
    return cell_table(PROTOCOL.title, cells, columns, _NOTE, "Figures are means over the runs." if several else "")


def _figures(cell: Cell) -> str:
    parts = []
    for name in dict.fromkeys(name for run in cell.runs for name in run.figures):
        mean = cell.figure(name)
        words = dict.fromkeys(value(run.figures.get(name)) for run in cell.runs)
        parts.append(f"{name.removeprefix('n_').replace('_', ' ')} {value(mean.mean) if mean else ' / '.join(words)}")
    return ", ".join(parts) or DASH


def _sentences(results: Sequence[Result], baseline: str | None) -> list[str]:
    """How the checks came out, whatever the baseline."""
    cells = cells_of(results, PROTOCOL)
    sentences, clear = [], []
    for target in dict.fromkeys(cell.target for cell in cells):
        checks = [cell for cell in cells if cell.target == target]
        failed = [cell.attack for cell in checks if cell.verdict == FAIL]
        unknown = [cell.attack for cell in checks if cell.verdict == UNKNOWN]
        if not failed and not unknown:
            clear.append(target)
            continue
        sentences.append(
            f"{PROTOCOL.title}, {target}: {len(checks) - len(failed) - len(unknown)} of {len(checks)} pass"
            + (f"; failed: {listed(failed)}" if failed else "")
            + (f"; not decided: {listed(unknown)}" if unknown else "")
            + "."
        )
    return sentences + ([f"{PROTOCOL.title}: all pass for {listed(clear, most=20)}."] if clear else [])


PART = ReportPart(protocol=PROTOCOL, heading="Gradient masking", tables=_tables, sentences=_sentences)
