"""Speed-up over the keep probability: a panel a network, a line a batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dcn_plugin.engine.sweep import SpeedPoint
from dcn_plugin.errors import RecordError
from dcn_plugin.report.plots.canvas import Look, legend_below, look, panel_grid, to_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["speed_png"]


def speed_png(points: Sequence[SpeedPoint]) -> bytes:
    """Draw how much faster compact models are than their dense twins, on a logarithmic axis.

    Returns:
        A PNG. Lines are medians over rounds, bars their quartiles; the dotted line of the same colour is the ideal.

    Raises:
        RecordError: there is nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    if not points:
        raise RecordError("There is no measured speed to draw.")
    networks = list(dict.fromkeys(point.network for point in points))
    looks = {batch: look(1 + i) for i, batch in enumerate(dict.fromkeys(point.speed.batch_size for point in points))}
    xlabels = ["keep probability p"] * len(networks)
    figure, grid, width = panel_grid(networks, xlabels, "times faster than without masks")
    for axes, network in zip(grid, networks, strict=True):
        _draw_panel(axes, [point for point in points if point.network == network], looks)
    _label_powers(grid[0])
    legend_below(figure, grid[0], width=width)
    return to_png(figure)


def _draw_panel(axes: Axes, points: Sequence[SpeedPoint], looks: dict[int, Look]) -> None:
    axes.axhline(1, color="#777777", lw=0.9)
    for batch, (color, marker, line) in looks.items():
        measured = sorted((point for point in points if point.speed.batch_size == batch), key=lambda point: point.p)
        keep = [point.p for point in measured]
        speeds = [point.speed for point in measured]
        bars = [
            [max(speed.speedup - speed.quartiles[0], 0) for speed in speeds],
            [max(speed.quartiles[1] - speed.speedup, 0) for speed in speeds],
        ]
        height = [speed.speedup for speed in speeds]
        name = f"batch {batch}"
        axes.errorbar(
            keep, height, yerr=bars, label=name, color=color, marker=marker, ls=line, ms=5.5, capsize=2.5, lw=1.6
        )
        axes.plot(keep, [speed.ideal for speed in speeds], color=color, ls=":", lw=1.1)
    axes.plot([], [], color="#000000", ls=":", lw=1.1, label="ideal")
    axes.set_xticks(sorted({point.p for point in points}))
    axes.set_yscale("log", base=2)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _label_powers(axes: Axes) -> None:
    """Label the shared vertical axis at powers of two, each in full."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    low, high = axes.get_ylim()
    powers = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
    axes.yaxis.set_major_locator(FixedLocator([2.0**power for power in powers]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)
