"""The report of distances: how far the nearest adversarial image is that an attack found."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.distance import PROTOCOL
from dcn_plugin.report.aggregate import Cell, apart, cells_of
from dcn_plugin.report.html import Figure
from dcn_plugin.report.plots import distance_png
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import (
    DATA,
    NETWORK,
    Column,
    cell_table,
    dash_note,
    numeric,
    passes,
    total,
    varied,
)
from dcn_plugin.support.number_format import DASH, value
from dcn_plugin.support.table import Table

__all__ = ["PART"]


def _tables(results: Sequence[Result]) -> list[Table]:
    """Boundary, HopSkipJump, CW and their like."""
    rows = cells_of(results, PROTOCOL)
    columns = [
        NETWORK,
        Column("attack", lambda cell: cell.attack or cell.protocol),
        *varied(rows, DATA),
        numeric("median", _median),
        numeric("95 %", _interval),
        numeric("found / right when clean", lambda cell: total(cell, "n_counted", "n_clean_correct")),
        numeric("failed starts", lambda cell: value(cell.total("n_failed_starts"))),
        numeric("mean queries", lambda cell: _queries(cell, "mean_queries")),
        numeric("most queries", lambda cell: _queries(cell, "max_queries")),
        *passes(rows),
    ]
    meaning = (
        "Distance: ||delta||^2 / (C*H*W), images in [0, 1]; the larger, the harder to fool. An image without an "
        "adversarial one (a failed start) has no distance and does not count. Interval: 95 %, of the median; over "
        "several runs, from the lowest lower to the highest upper bound. Queries: of an image that is right when "
        "clean. Passes: of the attack, for each image that it was shown."
    )
    return [cell_table("Distance to the nearest adversarial image", rows, columns, meaning, dash_note(rows))]


def _median(cell: Cell) -> str:
    median = cell.figure("median_distance")
    if median is None:
        return DASH
    return f"{median.mean:.2e}" if median.std is None else f"{median.mean:.2e} ± {median.std:.1e}"


def _bounds(cell: Cell) -> tuple[float, float] | None:
    return cell.figure_interval("distance_low", "distance_high")


def _interval(cell: Cell) -> str:
    bounds = _bounds(cell)
    return DASH if bounds is None else f"{bounds[0]:.2e}{DASH}{bounds[1]:.2e}"


def _queries(cell: Cell, name: str) -> str:
    queries = cell.figure(name)
    return DASH if queries is None else f"{queries.high if name == 'max_queries' else queries.mean:.0f}"


def _figures(results: Sequence[Result]) -> list[Figure]:
    medians = [(cell, cell.figure("median_distance")) for cell in cells_of(results, PROTOCOL)]
    drawn = [(cell, median.mean) for cell, median in medians if median is not None and median.mean > 0]
    if not drawn:
        return []
    lines = "; ".join(f"{cell.target}, {cell.attack}: {mean:.2e}" for cell, mean in drawn)
    caption = (
        "Median distance to the nearest adversarial image that the attack found, on a logarithmic axis; further right "
        "is harder to fool. Bars: 95 % intervals of the median."
    )
    return [Figure("distances", distance_png(results), f"Median distances. {lines}.", caption)]


def _sentences(results: Sequence[Result], baseline: str | None) -> list[str]:
    groups: dict[tuple[object, ...], dict[str, Cell]] = {}
    for cell in cells_of(results, PROTOCOL):
        groups.setdefault(cell.condition, {})[cell.target] = cell
    sentences = []
    for group in groups.values():
        base = group.pop(baseline, None) if baseline is not None else None
        unit = base.figure("median_distance") if base is not None else None
        if base is None or unit is None or unit.mean <= 0:
            continue
        parts = []
        for name, cell in group.items():
            median = cell.figure("median_distance")
            if median is not None:
                overlap = "" if apart(_bounds(cell), _bounds(base)) else " (intervals overlap)"
                parts.append(f"{name} {median.mean / unit.mean:.2f}{overlap}")
        if parts:
            sentences.append(f"{base.attack}: median distance in units of {baseline}'s: {', '.join(parts)}.")
    return sentences


PART = ReportPart(protocol=PROTOCOL, heading="Distances", tables=_tables, figures=_figures, sentences=_sentences)
