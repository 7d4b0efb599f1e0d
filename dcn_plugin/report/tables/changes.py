"""Tables of changed images, of the cue conflict, and of whatever protocol counts images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcn_plugin.evaluate import Result
from dcn_plugin.report.aggregate import Cell, cells
from dcn_plugin.report.tables.columns import (
    ATTACK,
    COUNTS,
    ENVELOPE,
    SOURCE,
    context_of,
    counts_of,
    dash_note,
    joined,
    only,
    table_rows,
)
from dcn_plugin.support.number_format import DASH, interval, percent, value
from dcn_plugin.support.table import Table

__all__ = ["CHANGES", "ChangeWords", "change_tables", "cue_conflict_tables", "noise_strength", "other_tables"]


@dataclass(frozen=True)
class ChangeWords:
    """What a protocol of changed images is called.

    Args:
        title: of its table.
        strength: header of the strength, None where there is none.
        note: how to read it.
    """

    title: str
    strength: str | None
    note: str = ""


CHANGES = {
    "gaussian": ChangeWords("Gaussian noise", "sigma"),
    "shuffle": ChangeWords(
        "Patch shuffle",
        "k",
        "The image is cut into k x k patches that are permuted: texture stays, shape goes, so a LOW figure speaks for "
        "shape; a guess gets one in the number of classes right.",
    ),
    "amplitude-swap": ChangeWords(
        "Amplitude swap", None, "Phase (shape) of one image, Fourier amplitude (texture) of one of another class."
    ),
    "stylized": ChangeWords("Stylised images", None, "The same pictures in another texture."),
}


def noise_strength(found: Sequence[Cell]) -> str:
    """What the strength of these noises is: "sigma", "eps" for clipped noise, "level" for a mixture."""
    kinds = {run.attack for cell in found for run in cell.runs}
    clipped = "gaussian-clipped" in kinds
    return "sigma" if not clipped else "eps" if len(kinds) == 1 else "level"


def change_tables(results: Sequence[Result], protocol: str) -> list[Table]:
    """One of :data:`CHANGES`."""
    found = cells(results, protocol=protocol)
    words = CHANGES[protocol]
    strength = noise_strength(found) if protocol == "gaussian" else words.strength
    columns = context_of(found, strength=strength)
    lured = any("amplitude_class_rate" in run.figures for cell in found for run in cell.runs)
    confidence = {run.attack_settings.get("confidence") for cell in found for run in cell.runs} - {None}

    def figures(cell: Cell) -> tuple[str, ...]:
        return (*counts_of(cell), *([percent(cell.figure("amplitude_class_rate"))] if lured else []))

    least = " / ".join(value(bound) for bound in sorted(confidence, key=str))
    sure = f", each with a probability of at least {least}" if least else ""
    return [
        Table(
            words.title,
            (*(column.header for column in columns), "still right", *COUNTS, *(["amplitude's class"] if lured else [])),
            table_rows(found, columns, figures),
            joined(
                words.note,
                f"Still right: of the images that every network classifies correctly when clean{sure}.",
                "Accuracy: of all images.",
                "Clipped noise: sigma = eps / 2, cut at eps." if strength in ("eps", "level") else "",
                ENVELOPE,
                dash_note(found),
            ),
            "".join(column.side for column in columns) + "r" * (1 + len(COUNTS) + lured),
        )
    ]


def cue_conflict_tables(results: Sequence[Result]) -> list[Table]:
    """Shape bias."""
    found = cells(results, protocol="cue-conflict")
    columns = context_of(found, strength=None)

    def figures(cell: Cell) -> tuple[str, ...]:
        low, high = cell.figure("shape_bias_low"), cell.figure("shape_bias_high")
        shape, texture = cell.figure("n_shape"), cell.figure("n_texture")
        sums = [DASH if part is None else f"{part.mean * part.count:.0f}" for part in (shape, texture)]
        return (
            percent(cell.figure("shape_bias")),
            DASH if low is None or high is None else interval((low.low, high.high)),
            *sums,
            str(cell.total("n_total")),
        )

    return [
        Table(
            "Cue conflict",
            (*(column.header for column in columns), "shape bias", "95 %", "shape", "texture", "images"),
            table_rows(found, columns, figures),
            joined(
                "Images with the shape of one class and the texture of another. Shape bias: of the answers that name "
                "either, the share that names the shape.",
                ENVELOPE,
                dash_note(found),
            ),
            "".join(column.side for column in columns) + "rrrrr",
        )
    ]


def other_tables(results: Sequence[Result], protocol: str) -> list[Table]:
    """A protocol that this version has no table of its own for: its counts, and its figures as they are."""
    found = cells(results, protocol=protocol)
    strength = "eps" if any(cell.eps is not None for cell in found) else None
    columns = context_of(found, strength=strength, relation="source is")
    names = list(dict.fromkeys(name for cell in found for run in cell.runs for name in run.figures))

    def figures(cell: Cell) -> tuple[str, ...]:
        return (*counts_of(cell), *(_figure(cell, name) for name in names))

    return [
        Table(
            f"Protocol {protocol}",
            (*(column.header for column in columns), "held", *COUNTS, *names),
            table_rows(found, columns, figures),
            joined(
                only(found, SOURCE, ATTACK),
                "Held: of the counted images. Accuracy: of all images.",
                ENVELOPE,
                dash_note(found),
            ),
            "".join(column.side for column in columns) + "r" * (1 + len(COUNTS) + len(names)),
        )
    ]


def _figure(cell: Cell, name: str) -> str:
    known = cell.figure(name)
    if known is not None:
        return value(known.mean)
    return " / ".join(dict.fromkeys(value(run.figures.get(name)) for run in cell.runs))
