"""Grids of images: examples with what networks said, and clean, adversarial, amplified difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dcn_plugin.evaluate import Examples
from dcn_plugin.report.plots.canvas import new_figure, show_image, to_png

if TYPE_CHECKING:
    from matplotlib.figure import FigureBase

__all__ = ["AMPLIFIED", "ImageGrid", "examples_png", "grid_png"]

AMPLIFIED = 10
"""Factor of the differences that are shown."""

_RIGHT = {True: "#00734d", False: "#b03a00"}


@dataclass(frozen=True, eq=False)
class ImageGrid:
    """A few adversarial images of one set.

    Args:
        title: source, attack and strength.
        indices: int64 (K,), their places in the data set.
        adversarial: float32 (K, C, H, W) in [0, 1].
        clean: the same images before the attack, where they are at hand.
        labels: int64 (K,), their classes, likewise.
        said: int64 (K,), the class that the source takes each adversarial image for, where that is known.
    """

    title: str
    indices: npt.NDArray[np.int64]
    adversarial: npt.NDArray[np.float32]
    clean: npt.NDArray[np.float32] | None = None
    labels: npt.NDArray[np.int64] | None = None
    said: npt.NDArray[np.int64] | None = None

    @property
    def rows(self) -> dict[str, npt.NDArray[np.float32]]:
        """Title -> images: clean, adversarial, and 10 times their difference around mid-grey."""
        if self.clean is None:
            return {"adversarial": self.adversarial}
        difference = np.clip(0.5 + AMPLIFIED * (self.adversarial - self.clean), 0, 1)
        return {"clean": self.clean, "adversarial": self.adversarial, f"difference × {AMPLIFIED}": difference}


def grid_png(grid: ImageGrid) -> bytes:
    """Draw a grid, a row a state, an image a column; above each its place and class, below what the source says.

    What is not known is left out.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows, count = grid.rows, len(grid.indices)
    lines = (grid.labels is not None) + (grid.said is not None)
    figure = new_figure(1.15 * count + 1.2, 1.2 * len(rows) + 0.35 + 0.17 * lines)
    for number, (line, (title, images)) in enumerate(
        zip(figure.subplots(len(rows), count, squeeze=False), rows.items(), strict=True)
    ):
        for k, axes in enumerate(line):
            show_image(axes, images[k])
            if k == 0:
                axes.set_ylabel(title.replace(" ", "\n", 1), rotation=0, ha="right", va="center", fontsize=10)
            if number == 0:
                label = f"#{grid.indices[k]}" + ("" if grid.labels is None else f"\nclass {grid.labels[k]}")
                axes.set_title(label, fontsize=9)
            if title == "adversarial" and grid.said is not None:
                axes.set_xlabel(f"taken for {grid.said[k]}", fontsize=9)
    return to_png(figure)


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
    figure = new_figure(1.1 * count + names_width, height + mask_height)
    upper: FigureBase = figure
    if examples.masks:
        halves = figure.add_gridspec(2, 1, height_ratios=(height, mask_height))
        upper, lower = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
        panels = lower.subplots(1, len(examples.masks), squeeze=False)[0]
        for axes, (title, mask) in zip(panels, examples.masks.items(), strict=True):
            show_image(axes, mask[None].astype(np.float32))
            axes.set_title(title, fontsize=9)
    for row, line_of_axes in zip(rows, upper.subplots(len(rows), count, squeeze=False), strict=True):
        for k, axes in enumerate(line_of_axes):
            show_image(axes, row.images[k])
            if k == 0:
                axes.text(-0.15, 0.5, row.title, transform=axes.transAxes, va="center", ha="right", weight="bold")
            for i, (network, classes) in enumerate(row.predictions.items()):
                right = classes[k] == examples.labels[k]
                # One line of text a network, in units of the image's height below it.
                y = -0.06 - 0.19 * i
                style = {"transform": axes.transAxes, "va": "top", "fontsize": 9}
                axes.text(
                    0.5, y, f"{classes[k]} {'✓' if right else '✗'}", ha="center", color=_RIGHT[bool(right)], **style
                )
                if k == 0:
                    axes.text(-0.15, y, network, ha="right", **style)
    return to_png(figure)
