"""The table of distances: how far the nearest adversarial image is that an attack found."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result, Spread
from dcn_plugin.report.aggregate import Cell, cells, is_distance
from dcn_plugin.report.tables.columns import DATA, NETWORK, Column, dash_note, joined, table_rows, varied
from dcn_plugin.support.number_format import DASH, counted
from dcn_plugin.support.table import Table

__all__ = ["distance_cells", "distance_interval", "distance_tables"]


def distance_cells(results: Sequence[Result]) -> list[Cell]:
    """The cells of every protocol that measures a distance, in order of appearance."""
    own = [result for result in results if is_distance(result)]
    return [cell for protocol in dict.fromkeys(r.protocol for r in own) for cell in cells(own, protocol=protocol)]


def distance_interval(cell: Cell) -> tuple[float, float] | None:
    """95 % interval of the median; over several runs the envelope. None where no image has a distance."""
    low, high = cell.figure("distance_low"), cell.figure("distance_high")
    return None if low is None or high is None else (low.low, high.high)


def distance_tables(results: Sequence[Result]) -> list[Table]:
    """Boundary, HopSkipJump, CW and their like."""
    found = distance_cells(results)
    columns = [NETWORK, Column("attack", lambda cell: cell.attack or cell.protocol), *varied(found, DATA)]
    return [
        Table(
            "Distance to the nearest adversarial image",
            (*(column.header for column in columns), "median", "95 %", "found / right when clean", "failed starts",
             "mean queries", "most queries"),
            table_rows(found, columns, _row),
            joined(
                "Distance: ||delta||^2 / (C*H*W), images in [0, 1]; the larger, the harder to fool. An image without "
                "an adversarial one (a failed start) has no distance and does not count. Interval: 95 %, of the "
                "median; over several runs, from the lowest lower to the highest upper bound.",
                dash_note(found),
            ),
            "".join(column.side for column in columns) + "rrrrrr",
        )
    ]  # fmt: skip


def _row(cell: Cell) -> tuple[str, ...]:
    bounds = distance_interval(cell)
    failed = cell.total("n_failed_starts")
    queries, most = cell.figure("mean_queries"), cell.figure("max_queries")
    return (
        _distance(cell.figure("median_distance")),
        DASH if bounds is None else f"{bounds[0]:.2e}{DASH}{bounds[1]:.2e}",
        counted(cell.total("n_counted"), cell.total("n_clean_correct")),
        DASH if failed is None else str(failed),
        DASH if queries is None else f"{queries.mean:.0f}",
        DASH if most is None else f"{most.high:.0f}",
    )


def _distance(median: Spread | None) -> str:
    if median is None:
        return DASH
    return f"{median.mean:.2e}" if median.std is None else f"{median.mean:.2e} ± {median.std:.1e}"
