"""Median distances with their intervals: a row a target, a colour an attack."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocols.distance import PROTOCOL
from dcn_plugin.report.aggregate import cells_of
from dcn_plugin.report.plots.canvas import legend_below, look, new_figure, to_png, wrapped

__all__ = ["distance_png"]


def distance_png(results: Sequence[Result]) -> bytes:
    """Draw the median distance of every target on a logarithmic axis.

    Returns:
        A PNG. Points are means over the runs, bars the 95 % intervals of the median (their envelope over the runs).

    Raises:
        RecordError: no record has a distance above 0.
        MissingExtraError: matplotlib is not installed.
    """
    cells = cells_of(results, PROTOCOL)
    drawn = [cell for cell in cells if (median := cell.figure("median_distance")) is not None and median.mean > 0]
    if not drawn:
        raise RecordError("There is no record of a distance to draw.")
    targets = list(dict.fromkeys(cell.target for cell in cells))
    attacks = list(dict.fromkeys(cell.attack or cell.protocol for cell in cells))
    looks = [look(i + 1) for i in range(len(attacks))]
    width = 6.4
    figure = new_figure(width, 1.5 + (0.28 + 0.16 * len(attacks)) * len(targets))
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter  # new_figure says if it is not there

    axes = figure.add_subplot()
    for cell in drawn:
        median, bounds = cell.figure("median_distance"), cell.figure_interval("distance_low", "distance_high")
        assert median is not None
        low, high = bounds or (median.mean, median.mean)
        place = attacks.index(cell.attack or cell.protocol)
        # Beside each other within the row of the target.
        y = targets.index(cell.target) + 0.7 * ((place + 0.5) / len(attacks) - 0.5)
        bars = [[max(median.mean - low, 0)], [max(high - median.mean, 0)]]
        color, marker, _ = looks[place]
        axes.errorbar(median.mean, y, xerr=bars, color=color, marker=marker, ls="none", ms=6, capsize=3, lw=1.8)
    for attack, (color, marker, _) in zip(attacks, looks, strict=True):
        axes.plot([], [], label=attack, color=color, marker=marker, ls="none")
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    # Within two decades powers of ten alone would be too few labels, all of matplotlib's own too many.
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks(range(len(targets)), [wrapped(name, 24) for name in targets])
    axes.set_ylim(len(targets) - 0.5, -0.5)
    axes.set_yticks([row + 0.5 for row in range(len(targets) - 1)], minor=True)
    axes.set_xlabel("median distance, ||delta||² / (C·H·W)")
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.grid(axis="y", which="minor", alpha=0.5)
    axes.tick_params(axis="y", which="both", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    legend_below(figure, axes, width=width)
    return to_png(figure)
