"""A rate over the strength of an attack or of a change of the images: a panel a source and attack, a line a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import Result, Spread
from dcn_plugin.evaluate.protocol import Strength
from dcn_plugin.report.aggregate import Cell, cells, strength_of
from dcn_plugin.report.plots.canvas import Look, legend_below, look, panel_grid, to_png
from dcn_plugin.support.number_format import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Rate", "rate_cells", "rate_of", "rate_png"]

Rate = Literal["accuracy", "defense"]

_Panel = dict[str, list[Cell]]


class _Point(NamedTuple):
    """Mean, bounds of the interval and single runs of a rate at one strength."""

    strength: float
    mean: float
    low: float
    high: float
    runs: list[float]


def rate_of(cell: Cell, rate: Rate) -> Spread | None:
    """The rate of a cell; None if it was not measured."""
    return cell.accuracy if rate == "accuracy" else cell.defense


def rate_cells(results: Sequence[Result], *, protocol: str, rate: Rate) -> list[Cell]:
    """The cells of a protocol that have this rate and a strength."""
    return [cell for cell in cells(results, protocol=protocol) if cell.strength is not None and rate_of(cell, rate)]


def rate_png(results: Sequence[Result], *, protocol: str, rate: Rate, xlabel: str, ylabel: str) -> bytes:
    """Draw a rate of every target over the strength of an attack or of a noise, with its intervals.

    Args:
        results: records; those of ``protocol`` are drawn.
        protocol: as in the records.
        rate: "accuracy": on all images, with the clean accuracy at strength 0. "defense": the defence rate.
        xlabel: of the horizontal axis.
        ylabel: of the vertical axis.

    Returns:
        A PNG, one panel a source, attack, image set and rounding. Lines are means over the runs, small circles single
        runs, bars the envelope of the 95 % intervals.

    Raises:
        RecordError: there is nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    panels: dict[tuple[object, ...], _Panel] = {}
    drawn = rate_cells(results, protocol=protocol, rate=rate)
    for cell in drawn:
        panels.setdefault(cell.condition, {}).setdefault(cell.target, []).append(cell)
    if not panels:
        raise RecordError(f"There is no record of the protocol {protocol!r} to draw.")
    targets = list(dict.fromkeys(cell.target for cell in drawn))
    figure, grid, width = panel_grid(
        _panel_titles(list(panels)),
        [_with_unit(xlabel, panel) for panel in panels.values()],
        ylabel,
        legend=0.24 * -(-len(targets) // 4),
    )
    looks = {target: look(i) for i, target in enumerate(targets)}
    for axes, panel in zip(grid, panels.values(), strict=True):
        _draw_panel(axes, panel, rate, looks)
    widest = max(grid, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    legend_below(figure, widest, width=width)
    engine = figure.get_layout_engine()
    assert engine is not None  # new_figure gives one
    engine.set(h_pad=0.08)  # type: ignore[call-arg]
    return to_png(figure)


def _draw_panel(axes: Axes, panel: _Panel, rate: Rate, looks: dict[str, Look]) -> None:
    words = _strength(panel)
    every = [cell.strength or 0.0 for line in panel.values() for cell in line]
    lines = {target: _points(line, rate, start=words.start) for target, line in panel.items()}
    ticks = sorted({*every, *(point.strength for line in lines.values() for point in line)})
    nudge = 0.012 * ((ticks[-1] - ticks[0]) or 1)
    for i, (target, points) in enumerate(lines.items()):
        strengths, mean, low, high = (np.array([point[k] for point in points]) for k in range(4))
        # Side by side, so that the bars of one strength do not hide each other.
        side = i - (len(lines) - 1) / 2
        x = strengths * 1.03**side if words.logarithmic else strengths + nudge * side
        bars = 100 * np.clip(np.stack([mean - low, high - mean]), 0, None)
        color, marker, line = looks[target]
        axes.errorbar(
            x, 100 * mean, yerr=bars, label=target, color=color, marker=marker, ls=line, ms=5.5, capsize=2.5, lw=1.6
        )
        for at, point in zip(x, points, strict=True):
            if len(point.runs) > 1:
                runs = [100 * value for value in point.runs]
                axes.plot([at] * len(runs), runs, "o", mfc="white", mec=color, ms=3.5, mew=0.9, zorder=3)
    if words.logarithmic:
        axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [_tick(panel, tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(-3, 103)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _points(line: Sequence[Cell], rate: Rate, *, start: float) -> list[_Point]:
    points = []
    for cell in sorted(line, key=lambda cell: cell.strength or 0):
        values = [run.accuracy_all if rate == "accuracy" else run.defense_rate for run in cell.runs]
        interval = cell.accuracy_interval if rate == "accuracy" else cell.defense_interval
        points.append(_point(cell.strength or 0.0, values, interval))
    if rate == "accuracy" and line[0].clean is not None:
        clean = _point(start, [run.clean_accuracy for run in line[0].runs], line[0].clean_interval)
        points = [clean, *(point for point in points if point.strength != start)]
    return points


def _point(strength: float, values: Sequence[float | None], interval: tuple[float, float] | None) -> _Point:
    runs = [value for value in values if value is not None]
    assert runs and interval is not None  # cells without the rate are not drawn
    return _Point(strength, float(np.mean(runs)), *interval, runs)


def _strength(panel: _Panel) -> Strength:
    return strength_of(next(iter(panel.values()))[0].runs[0])


def _in_levels(panel: _Panel) -> bool:
    """Whether the strengths are read in grey levels: 8/255, 16/255."""
    return any(number(cell.strength).endswith("/255") for line in panel.values() for cell in line)


def _with_unit(label: str, panel: _Panel) -> str:
    if _strength(panel).setting != "eps":
        return label
    return f"{label}, in 1/255" if _in_levels(panel) else f"{label} (pixels lie in [0, 1])"


def _tick(panel: _Panel, strength: float) -> str:
    return f"{255 * strength:.3g}" if _in_levels(panel) else number(strength)


def _panel_titles(keys: Sequence[tuple[object, ...]]) -> list[str]:
    """What sets each panel apart from the others."""
    varies = [len({key[k] for key in keys}) > 1 for k in range(6)]
    words = ((2, ""), (1, "source "), (3, ""), (5, "rounding "))
    return [", ".join(f"{name}{key[k]}" for k, name in words if varies[k]) for key in keys]
