"""What robustness costs: accuracy under attack over clean accuracy, a point a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dcn_plugin.errors import RecordError
from dcn_plugin.report.plots.canvas import legend_below, look, panel_grid, to_png

__all__ = ["trade_off_png"]


def trade_off_png(groups: Mapping[str, Sequence[tuple[str, float, float]]], *, least: float | None = None) -> bytes:
    """Draw networks by what they get right.

    Args:
        groups: label of the legend -> its networks: name, clean accuracy, accuracy under attack, as shares.
        least: clean accuracy that may not be fallen below, shown as a line.

    Returns:
        A PNG; up and to the right is better.

    Raises:
        RecordError: there is nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    if not any(groups.values()):
        raise RecordError("There is no network to draw.")
    figure, (axes,), width = panel_grid(
        ["what robustness costs"], ["clean accuracy, %"], "accuracy under transfer attacks, %"
    )
    for place, (label, networks) in enumerate(groups.items()):
        color, marker, _ = look(place)
        axes.plot(
            [100 * clean for _, clean, _ in networks],
            [100 * attacked for _, _, attacked in networks],
            label=label,
            color=color,
            marker=marker,
            ls="",
            ms=6,
        )
        for name, clean, attacked in networks:
            axes.annotate(name, (100 * clean, 100 * attacked), (4, 4), textcoords="offset points", fontsize=7)
    if least is not None:
        axes.axvline(100 * least, color="#777777", lw=0.9, ls="--", label="least clean accuracy")
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    legend_below(figure, axes, width=width)
    return to_png(figure)
