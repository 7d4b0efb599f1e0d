"""The figures of each family of protocols: which there are, what each shows in words, how it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dcn_plugin.evaluate import Examples, Result
from dcn_plugin.report.aggregate import Cell, Matrix, cells, matrices
from dcn_plugin.report.html import Figure
from dcn_plugin.report.plots import (
    AMPLIFIED,
    ImageGrid,
    Rate,
    distance_png,
    examples_png,
    grid_png,
    heatmap_png,
    rate_cells,
    rate_png,
)
from dcn_plugin.report.tables.attacks import matrix_title
from dcn_plugin.report.tables.changes import noise_strength
from dcn_plugin.report.tables.distances import distance_cells
from dcn_plugin.report.tables.families import Family
from dcn_plugin.support.number_format import listed, number, percent

__all__ = ["examples_figure", "family_figures", "grid_figures"]

_BARS = "Lines: mean over the runs; small circles: single runs; bars: 95 % intervals (their envelope over the runs)."
_DEFENSE = (
    "Defence rate: of the images that fooled the source and that the network has right when clean, the share it still "
    "gets right."
)
_FRAMES = (
    "Solid frame: white-box, the source is or holds the target; dashed: gray-box, the same structure, or weights in "
    "common."
)


def family_figures(family: Family) -> list[Figure]:
    """The figures of a family, in order; none for families that are shown as tables only."""
    results = family.results
    match family.name:
        case "transfer":
            return [*_heatmaps(results), *_transfer_lines(results)]
        case "whitebox":
            caption = "Robust accuracy under white-box attacks; at eps 0 the clean accuracy."
            return _lines(results, "whitebox", "accuracy", "eps", "robust accuracy (%)", caption, single=False)
        case "gaussian":
            strength = noise_strength(cells(results, protocol="gaussian"))
            caption = f"Accuracy on all images under Gaussian noise; at {strength} 0 the clean accuracy."
            return _lines(results, "gaussian", "accuracy", strength, "accuracy, all images (%)", caption)
        case "shuffle":
            caption = "Accuracy on all images whose k x k patches are shuffled; at k = 1 the clean accuracy."
            label = "k (patches along either axis)"
            return _lines(results, "shuffle", "accuracy", label, "accuracy, all images (%)", caption)
        case "distance":
            return _distances(results)
    return []


def examples_figure(examples: Examples) -> Figure:
    """Example images with what every network says."""
    states = ", ".join(row.title for row in examples.rows)
    classes = ", ".join(map(str, examples.labels.tolist()))
    return Figure(
        "examples",
        examples_png(examples),
        f"Grid of {len(examples.labels)} images of the classes {classes} in the states {states}"
        + (f", then {len(examples.masks)} defect masks, white where a neuron is kept." if examples.masks else "."),
        f"{examples.chosen} Below each image: what every network says it is."
        + (" Last row: defect masks, white = kept." if examples.masks else ""),
        wide=True,
    )


def grid_figures(grids: Sequence[ImageGrid]) -> list[Figure]:
    """Adversarial images, one figure a set."""
    figures = []
    for place, grid in enumerate(grids, 1):
        shown = f"The first {len(grid.indices)} images on which the attack fooled its source"
        caption = f"{grid.title}. {shown}" + (
            f"; below, {AMPLIFIED} times the difference around mid-grey." if grid.clean is not None else "."
        )
        if grid.said is not None:
            caption += " Taken for: the class that the source says."
        places = ", ".join(map(str, grid.indices.tolist()))
        alt = f"{grid.title}: {', '.join(grid.rows)} images of the places {places} in the data set, side by side."
        figures.append(Figure(f"images_{place:02d}", grid_png(grid), alt, caption))
    return figures


def _heatmaps(results: Sequence[Result]) -> list[Figure]:
    figures = []
    rates: tuple[tuple[Rate, str, str], ...] = (
        ("defense", "defence rate (%)", _DEFENSE),
        ("accuracy", "accuracy, all images (%)", "Accuracy on all images."),
    )
    families: dict[object, list[Matrix]] = {}
    for matrix in matrices(results):
        families.setdefault(matrix.family, []).append(matrix)
    for rate, label, caption in rates:
        for place, group in enumerate(families.values(), 1):
            every = [cell for matrix in group for cell in matrix.cells.values()]
            if not any(getattr(cell, rate) for cell in every):
                continue
            frames = _FRAMES if any(cell.relation not in (None, "other network") for cell in every) else ""
            title = matrix_title(group[0], strength=len(group) == 1)
            figures.append(
                Figure(
                    f"matrix_{rate}_{place:02d}",
                    heatmap_png(group, rate=rate, label=label),
                    " ".join(_matrix_alt(matrix, rate) for matrix in group),
                    f"{title}; {group[0].example.data}. {caption} {frames}".strip(),
                    folded=rate == "accuracy",
                )
            )
    return figures


def _transfer_lines(results: Sequence[Result]) -> list[Figure]:
    """A figure an attack and rate, a panel a source; where a heat map shows it, one strength makes no line."""
    found = cells(results, protocol="transfer")
    attacks = list(dict.fromkeys(cell.attack for cell in found))
    figures = []
    rates: tuple[tuple[Rate, str, str], ...] = (
        ("accuracy", "accuracy, all images (%)",
         "Accuracy on all images after a transfer attack; at eps 0 the clean accuracy."),
        ("defense", "defence rate (%)", _DEFENSE),
    )  # fmt: skip
    for rate, label, caption in rates:
        for attack in attacks:
            several = len(attacks) > 1
            own = [run for cell in found if cell.attack == attack for run in cell.runs]
            name = f"transfer_{rate}" + (f"_{_slug(str(attack))}" if several else "")
            words = f"{attack}. {caption}" if several else caption
            inside = [f"{cell.target} on {cell.source}" for cell in found if cell.attack == attack and cell.no_transfer]
            words += f" White-box, no transfer: {listed(inside)}." if inside else ""
            mapped = bool(matrices(own))
            folded = mapped and rate == "defense"
            figures += _lines(own, "transfer", rate, "eps", label, words, name=name, single=not mapped, folded=folded)
    return figures


def _lines(
    results: Sequence[Result],
    protocol: str,
    rate: Rate,
    strength: str,
    label: str,
    caption: str,
    *,
    name: str | None = None,
    single: bool = True,
    folded: bool = False,
) -> list[Figure]:
    """One plot of a rate over a strength; none without points, or (``single`` False) with one strength only."""
    found = rate_cells(results, protocol=protocol, rate=rate)
    if len({cell.strength for cell in found}) < (1 if single else 2):
        return []
    png = rate_png(results, protocol=protocol, rate=rate, xlabel=strength, ylabel=label)
    panels = len({cell.condition for cell in found})
    words = f"{caption} {_BARS}"
    return [Figure(name or protocol, png, _lines_alt(found, rate, strength), words, wide=panels > 1, folded=folded)]


def _distances(results: Sequence[Result]) -> list[Figure]:
    found = [(cell, cell.figure("median_distance")) for cell in distance_cells(results)]
    known = [(cell, median.mean) for cell, median in found if median is not None and median.mean > 0]
    if not known:
        return []
    lines = "; ".join(f"{cell.target}, {cell.attack}: {mean:.2e}" for cell, mean in known)
    caption = (
        "Median distance to the nearest adversarial image that the attack found, on a logarithmic axis; further right "
        "is harder to fool. Bars: 95 % intervals of the median."
    )
    return [Figure("distances", distance_png(results), f"Median distances. {lines}.", caption)]


def _lines_alt(found: Sequence[Cell], rate: Rate, strength: str) -> str:
    """The plot in words: every line, point by point."""
    lines: dict[str, list[str]] = {}
    several = len({cell.condition for cell in found}) > 1
    for cell in found:
        value = cell.accuracy if rate == "accuracy" else cell.defense
        setting = [cell.source if cell.protocol == "transfer" else None, cell.attack] if several else []
        name = ", ".join([cell.target, *(part for part in setting if part)])
        lines.setdefault(name, []).append(f"{percent(value)} at {number(cell.strength)}")
    what = "Accuracy" if rate == "accuracy" else "Defence rate"
    return f"{what} over {strength}. " + "; ".join(f"{name}: {', '.join(p)}" for name, p in lines.items()) + "."


def _matrix_alt(matrix: Matrix, rate: Rate) -> str:
    what = "accuracy" if rate == "accuracy" else "defence rate"
    lines: dict[str, list[str]] = {}
    for (source, target), cell in matrix.cells.items():
        value = cell.accuracy if rate == "accuracy" else cell.defense
        lines.setdefault(source, []).append(f"{target} {percent(value)}")
    rows = "; ".join(f"source {source}: {', '.join(own)}" for source, own in lines.items())
    return f"Heat map of the {what}, {matrix_title(matrix)}. {rows}."


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
