"""PNG plots of records, drawn without a display. The colours (Okabe and Ito) differ for the colour-blind too."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from dcn_plugin.errors import MissingExtraError, RecordError
from dcn_plugin.evaluate import Examples, Result
from dcn_plugin.report.groups import Cell, cells, clean_cells

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

__all__ = ["Rate", "examples_png", "rate_png"]

Rate = Literal["accuracy", "defense"]

_COLORS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX"
_DPI = 180
_RIGHT = {True: "#00734d", False: "#b03a00"}


def rate_png(results: Sequence[Result], *, protocol: str, rate: Rate, xlabel: str, ylabel: str) -> bytes:
    """Draw a rate of every target over the strength of an attack or of a noise, with its intervals.

    Args:
        results: records; those of ``protocol`` are drawn.
        protocol: e.g. "transfer".
        rate: "accuracy": on all images, with the clean accuracy at strength 0. "defense": the defence rate.
        xlabel: of the horizontal axis.
        ylabel: of the vertical axis.

    Returns:
        A PNG. Lines are means over the runs, small circles single runs, bars the envelope of the 95 % intervals.

    Raises:
        RecordError: there is nothing to draw.
        MissingExtraError: matplotlib is not installed.
    """
    lines: dict[str, list[Cell]] = {}
    for cell in cells(results, protocol=protocol):
        if cell.eps is not None and (rate == "accuracy" or cell.defense is not None):
            lines.setdefault(cell.target, []).append(cell)
    if not lines:
        raise RecordError(f"There is no record of the protocol {protocol!r} to draw.")
    figure = _figure(5.4, 3.9)
    axes = figure.add_subplot()
    clean = {cell.target: cell for cell in clean_cells(results)}
    strengths = sorted({cell.eps for line in lines.values() for cell in line if cell.eps is not None})
    nudge = 0.012 * (strengths[-1] - (0 if rate == "accuracy" else strengths[0]) or 1)
    for i, (target, line) in enumerate(lines.items()):
        points = [(cell.eps or 0.0, *_read(cell, rate)) for cell in sorted(line, key=lambda cell: cell.eps or 0)]
        if rate == "accuracy":
            points.insert(0, (0.0, *_read(clean[target], "clean")))
        # Side by side, so that the bars of one strength do not hide each other.
        x = np.array([point[0] for point in points]) + nudge * (i - (len(lines) - 1) / 2)
        mean, low, high = (100 * np.array([point[k] for point in points]) for k in (1, 2, 3))
        color, marker = _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)]
        bars = np.clip(np.stack([mean - low, high - mean]), 0, None)
        axes.errorbar(x, mean, yerr=bars, color=color, marker=marker, markersize=6, capsize=3, lw=1.8, label=target)
        for at, point in zip(x, points, strict=True):
            if len(point[4]) > 1:
                runs = [100 * value for value in point[4]]
                axes.plot([at] * len(runs), runs, "o", mfc="white", mec=color, ms=3.5, mew=0.9, zorder=3)
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-3, 103), xticks=[0, *strengths] if rate == "accuracy" else strengths)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _png(figure)


def examples_png(examples: Examples) -> bytes:
    """Draw example images, a row a state, with what every network says below each; then the masks.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows, count = examples.rows, len(examples.labels)
    networks = list(rows[0].predictions)
    names_width = 0.1 * max(map(len, networks))
    text_height = 0.22 * len(networks) + 0.05
    height, mask_height = (1.1 + text_height) * len(rows), 1.6 if examples.masks else 0.0
    figure = _figure(1.1 * count + names_width, height + mask_height)
    upper: FigureBase = figure
    if examples.masks:
        halves = figure.add_gridspec(2, 1, height_ratios=(height, mask_height))
        upper, lower = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
        panels = lower.subplots(1, len(examples.masks), squeeze=False)[0]
        for axes, (title, mask) in zip(panels, examples.masks.items(), strict=True):
            _show(axes, mask[None].astype(np.float32))
            axes.set_title(title, fontsize=9)
    for row, line_of_axes in zip(rows, upper.subplots(len(rows), count, squeeze=False), strict=True):
        for k, axes in enumerate(line_of_axes):
            _show(axes, row.images[k])
            if k == 0:
                axes.text(-0.15, 0.5, row.title, transform=axes.transAxes, va="center", ha="right", weight="bold")
            for i, (network, said) in enumerate(row.predictions.items()):
                right = said[k] == examples.labels[k]
                # One line of text a network, in units of the image's height below it.
                y = -0.06 - 0.19 * i
                style = {"transform": axes.transAxes, "va": "top", "fontsize": 9}
                axes.text(0.5, y, f"{said[k]} {'✓' if right else '✗'}", ha="center", color=_RIGHT[bool(right)], **style)
                if k == 0:
                    axes.text(-0.15, y, network, ha="right", **style)
    return _png(figure)


def _read(cell: Cell, rate: Rate | Literal["clean"]) -> tuple[float, float, float, list[float]]:
    """Mean, bounds of the interval, and single runs of a rate."""
    if rate == "defense":
        values = [run.defense_rate for run in cell.runs if run.defense_rate is not None]
        interval = cell.defense_interval
        assert interval is not None  # cells without a defence rate are not drawn
    elif rate == "clean":
        values, interval = [run.clean_accuracy for run in cell.runs], cell.clean_interval
    else:
        values, interval = [run.accuracy_all for run in cell.runs], cell.accuracy_interval
    return float(np.mean(values)), *interval, values


def _figure(width: float, height: float) -> Figure:
    try:
        # Not pyplot: it would keep the figure and could ask for a display.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "Plots are drawn with matplotlib, which is not installed.", fix='pip install "dcn-plugin[report]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _show(axes: Axes, image: npt.NDArray[np.float32]) -> None:
    picture = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the name of the software and its version, the same records give the same file.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
