"""The transfer matrix as a heat map: sources down, targets across, the rate written in every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dcn_plugin.report.aggregate import Cell, Matrix
from dcn_plugin.report.plots.canvas import LineStyle, new_figure, to_png, wrapped
from dcn_plugin.report.plots.rates import Rate, rate_of
from dcn_plugin.support.number_format import DASH, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["heatmap_png"]

# Cell sizes in inches; the text of a cell fits at the font sizes below.
_CELL_WIDTH, _CELL_HEIGHT = 0.92, 0.62
_NAME_WIDTH = 14
# Of the legend: a frame and the space around it, and a letter.
_KEY_WIDTH, _LETTER_WIDTH = 0.75, 0.07
_FRAMES: dict[str, LineStyle] = {"same network": "-", "other weights": "--", "other masks": "--"}


def heatmap_png(matrices: Sequence[Matrix], *, rate: Rate, label: str) -> bytes:
    """Draw the transfer matrices of one attack, one below the other.

    Args:
        matrices: one a strength, from :func:`dcn_plugin.report.matrices`; at least one.
        rate: "accuracy": on all images. "defense": the defence rate.
        label: of the colour bar.

    Returns:
        A PNG. In each cell the rate in %, over several runs its standard deviation below. A solid frame: white-box, the
        source is or holds the target; a dashed one: gray-box, the same structure with other weights or masks, or
        weights in common. The colours (cividis) grow evenly from dark to light, for the colour-blind too.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    sources = list(dict.fromkeys(source for matrix in matrices for source in matrix.sources))
    targets = list(dict.fromkeys(target for matrix in matrices for target in matrix.targets))
    names = [wrapped(name, _NAME_WIDTH) for name in targets]
    slanted = max(len(line) for name in names for line in name.split("\n")) > 9
    width = _CELL_WIDTH * len(targets) + 0.09 * min(_NAME_WIDTH, max(map(len, sources))) + 1.6
    keys = _frame_words(matrices)
    # The words of a narrow picture stand on several lines.
    room = int((width - _KEY_WIDTH) / _LETTER_WIDTH)
    words = [wrapped(text, room) if len(text) > room else text for text in keys.values()]
    widest = max((len(line) for text in words for line in text.split("\n")), default=0)
    columns = max(1, min(len(words), int(width // (_KEY_WIDTH + _LETTER_WIDTH * widest))))
    lines = -(-len(words) // columns) * max((1 + text.count("\n") for text in words), default=0)
    height = (_CELL_HEIGHT * len(sources) + 0.35) * len(matrices) + (1.5 if slanted else 0.9) + 0.2 * lines
    figure = new_figure(width, height)
    panels = figure.subplots(len(matrices), 1, squeeze=False, sharex=True)[:, 0]
    for axes, matrix in zip(panels, matrices, strict=True):
        image = _draw_matrix(axes, matrix, sources, targets, rate)
        if len(matrices) > 1:
            axes.set_title(f"eps {number(matrix.example.eps)}", fontsize=11, loc="left")
    if slanted:
        panels[-1].set_xticks(range(len(targets)), names, rotation=35, ha="right", rotation_mode="anchor")
    else:
        panels[-1].set_xticks(range(len(targets)), names)
    panels[-1].set_xlabel("target")
    bar = figure.colorbar(image, ax=list(panels), label=label, fraction=0.05, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    _explain_frames(figure, dict(zip(keys, words, strict=True)), columns)
    return to_png(figure)


def _draw_matrix(axes: Axes, matrix: Matrix, sources: Sequence[str], targets: Sequence[str], rate: Rate) -> AxesImage:
    values = np.full((len(sources), len(targets)), np.nan)
    for (source, target), cell in matrix.cells.items():
        shares = rate_of(cell, rate)
        if shares is not None:
            values[sources.index(source), targets.index(target)] = 100 * shares.mean
    axes.set_facecolor("#dddddd")  # what was not measured
    image = axes.imshow(values, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_yticks(range(len(sources)), [wrapped(name, _NAME_WIDTH) for name in sources])
    axes.set_ylabel("source")
    axes.set_xticks(np.arange(len(targets) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(sources) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for row, source in enumerate(sources):
        for column, target in enumerate(targets):
            _write_cell(axes, matrix.cells.get((source, target)), row, column, values[row, column], rate)
    return image


def _write_cell(axes: Axes, cell: Cell | None, row: int, column: int, value: float, rate: Rate) -> None:
    from matplotlib.patches import Rectangle

    color = "black" if np.isnan(value) or value > 50 else "white"
    shares = None if cell is None else rate_of(cell, rate)
    several = shares is not None and shares.std is not None
    text = DASH if shares is None else f"{100 * shares.mean:.1f}"
    axes.text(column, row - 0.12 * several, text, ha="center", va="center", color=color, fontsize=11)
    if shares is not None and shares.std is not None:
        axes.text(column, row + 0.22, f"± {100 * shares.std:.1f}", ha="center", va="center", color=color, fontsize=8)
    frame = _frame(cell)
    if frame:
        corner = (column - 0.44, row - 0.42)
        axes.add_patch(Rectangle(corner, 0.88, 0.84, fill=False, edgecolor=color, lw=1.8, linestyle=frame))


def _frame(cell: Cell | None) -> LineStyle | None:
    relation = None if cell is None else cell.closest
    return _FRAMES.get(relation or "")


def _frame_words(matrices: Sequence[Matrix]) -> dict[LineStyle, str]:
    """What the frames that are drawn say."""
    used = {_frame(cell) for matrix in matrices for cell in matrix.cells.values()}
    words: dict[LineStyle, str] = {
        "-": "white-box: the source is or holds the target",
        "--": "gray-box: other weights or masks",
    }
    return {frame: text for frame, text in words.items() if frame in used}


def _explain_frames(figure: Figure, words: Mapping[LineStyle, str], columns: int) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(fill=False, edgecolor="black", lw=1.6, linestyle=frame, label=text) for frame, text in words.items()
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
