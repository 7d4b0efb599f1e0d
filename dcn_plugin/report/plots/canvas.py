"""What every plot shares: a figure without a display, colours, and the way to a PNG."""

from __future__ import annotations

import io
import re
import textwrap
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dcn_plugin.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LineStyle", "Look", "legend_below", "look", "new_figure", "panel_grid", "show_image", "to_png", "wrapped"]

# Okabe and Ito: they differ for the colour-blind too.
_COLORS = ("#000000", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^vPX"
LineStyle = Literal["-", "--", ":"]
_LINES: tuple[LineStyle, ...] = ("-", "--", ":")
_DPI = 180


class Look(NamedTuple):
    """How a line is drawn."""

    color: str
    marker: str
    line: LineStyle


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        # Not pyplot: it would keep the figure and could ask for a display.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "Plots are drawn with matplotlib, which is not installed.", fix='pip install "dcn-plugin[report]"'
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def panel_grid(
    titles: Sequence[str], xlabels: Sequence[str], ylabel: str, *, legend: float = 0.0
) -> tuple[Figure, list[Axes], float]:
    """Panels, two side by side, with their titles and labels, on a figure with room for a legend of this many inches.

    Returns:
        The figure, its panels, and its width in inches.
    """
    count, columns = len(titles), min(2, len(titles))
    rows, width = -(-count // columns), 5.4 if columns == 1 else 4.2 * columns
    figure = new_figure(width, (3.9 if rows == 1 else 3.1 * rows) + legend)
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
    for axes in grid[count:]:
        axes.remove()
    for place, (axes, title, xlabel) in enumerate(zip(grid, titles, xlabels, strict=False)):
        axes.set_title(wrapped(title, 46), fontsize=10)
        if place + columns >= count:
            axes.set_xlabel(xlabel)
        if place % columns == 0:
            axes.set_ylabel(ylabel)
    return figure, grid[:count], width


def look(index: int) -> Look:
    """Colour, marker and line of the line number ``index``; 21 of them differ."""
    turn, place = divmod(index, len(_COLORS))
    return Look(_COLORS[place], _MARKERS[place], _LINES[turn % len(_LINES)])


def legend_below(figure: Figure, axes: Axes, *, width: float) -> None:
    """Put the legend of ``axes`` under the whole figure, in as many columns as fit into ``width`` inches."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, int(width // (0.55 + 0.085 * max(map(len, labels)))))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False)


def wrapped(text: str, width: int) -> str:
    """A long name on several lines, broken behind spaces, dashes, slashes and underscores where that can be."""
    lines = [""]
    for part in re.split(r"(?<=[ _/-])", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(piece.rstrip() for line in lines for piece in textwrap.wrap(line, 2 * width) or [""])


def show_image(axes: Axes, image: npt.NDArray[np.float32]) -> None:
    """Draw an image (C, H, W) in [0, 1] pixel by pixel: three channels in colour, others as the grey of their mean."""
    picture = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    # Without the name of the software and its version, the same records give the same file.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
