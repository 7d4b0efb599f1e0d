"""The report of the cue conflict: shape bias."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.cue_conflict import PROTOCOL
from dcn_plugin.report.aggregate import Cell, cells_of
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import context_of, numeric, rate_table
from dcn_plugin.support.number_format import DASH, interval, percent, points
from dcn_plugin.support.table import Table

__all__ = ["PART"]


def _tables(results: Sequence[Result]) -> list[Table]:
    rows = cells_of(results, PROTOCOL)
    columns = [
        *context_of(rows, strength=None),
        numeric("shape bias", lambda cell: percent(cell.figure("shape_bias"))),
        numeric("95 %", lambda cell: interval(cell.figure_interval("shape_bias_low", "shape_bias_high"))),
        numeric("shape", lambda cell: _sum(cell, "n_shape")),
        numeric("texture", lambda cell: _sum(cell, "n_texture")),
        numeric("images", lambda cell: str(cell.total("n_total"))),
    ]
    meaning = (
        "Images with the shape of one class and the texture of another. Shape bias: of the answers that name either, "
        "the share that names the shape."
    )
    return [rate_table("Cue conflict", rows, columns, meaning)]


def _sum(cell: Cell, name: str) -> str:
    mean = cell.figure(name)
    return DASH if mean is None else f"{mean.mean * mean.count:.0f}"


def _sentences(results: Sequence[Result], baseline: str | None) -> list[str]:
    groups: dict[tuple[object, ...], dict[str, float]] = {}
    for cell in cells_of(results, PROTOCOL):
        bias = cell.figure("shape_bias")
        if bias is not None:
            groups.setdefault(cell.condition, {})[cell.target] = bias.mean
    sentences = []
    for group in groups.values():
        base = group.pop(baseline, None) if baseline is not None else None
        if base is not None and group:
            parts = [f"{name} {percent(bias)} ({points(bias - base)})" for name, bias in group.items()]
            sentences.append(f"{PROTOCOL.title}: {baseline} {percent(base)}; {', '.join(parts)}.")
    return sentences


PART = ReportPart(protocol=PROTOCOL, heading="Cue conflict", tables=_tables, sentences=_sentences)
