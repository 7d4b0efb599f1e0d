"""The reports of changed images: noise, shuffled patches, swapped amplitudes, another style."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dcn_plugin.evaluate import Result
from dcn_plugin.evaluate.protocol import Protocol
from dcn_plugin.evaluate.protocols import amplitude, gaussian, shuffle, stylized
from dcn_plugin.report.aggregate import Cell, cells_of
from dcn_plugin.report.figures import rate_figure
from dcn_plugin.report.html import Figure
from dcn_plugin.report.protocols.part import ReportPart
from dcn_plugin.report.tables.columns import Column, context_of, counts, numeric, rate_table
from dcn_plugin.support.number_format import percent, value
from dcn_plugin.support.table import Table

__all__ = ["PARTS"]

_RATE = "accuracy, all images (%)"


def _part(
    protocol: Protocol,
    note: str = "",
    *,
    title: str = "",
    columns: Sequence[Column] = (),
    strength: Callable[[Sequence[Cell]], str | None] = lambda _: None,
    figures: Callable[[Sequence[Result]], list[Figure]] = lambda _: [],
) -> ReportPart:
    """A part whose table has the share of the images that stay right; the note says what was done to them."""
    title = title or protocol.title

    def tables(results: Sequence[Result]) -> list[Table]:
        rows = cells_of(results, protocol)
        name = strength(rows)
        bounds = {run.attack_settings.get("confidence") for cell in rows for run in cell.runs} - {None}
        least = " / ".join(value(bound) for bound in sorted(bounds, key=str))
        confident = f", each with a probability of at least {least}" if least else ""
        notes = (
            note,
            f"Still right: of the images that every network classifies correctly when clean{confident}.",
            "Accuracy: of all images.",
            "Clipped noise: sigma = eps / 2, cut at eps." if name in ("eps", "level") else "",
        )
        shown = [*context_of(rows, strength=name), *counts("still right"), *columns]
        return [rate_table(title, rows, shown, *notes)]

    return ReportPart(
        protocol=protocol, heading=title, tables=tables, figures=figures, subject=lambda _: title, strength=strength
    )


def _noise_strength(cells: Sequence[Cell]) -> str:
    """What the strength of these noises is: "sigma", "eps" for clipped noise, "level" for a mixture."""
    kinds = {run.attack for cell in cells for run in cell.runs}
    clipped = "gaussian-clipped" in kinds
    return "sigma" if not clipped else "eps" if len(kinds) == 1 else "level"


def _noise_figures(results: Sequence[Result]) -> list[Figure]:
    strength = _noise_strength(cells_of(results, gaussian.PROTOCOL))
    caption = f"Accuracy on all images under Gaussian noise; at {strength} 0 the clean accuracy."
    return rate_figure(results, gaussian.PROTOCOL, "accuracy", strength, _RATE, caption)


def _shuffle_figures(results: Sequence[Result]) -> list[Figure]:
    caption = "Accuracy on all images whose k x k patches are shuffled; at k = 1 the clean accuracy."
    return rate_figure(results, shuffle.PROTOCOL, "accuracy", "k (patches along either axis)", _RATE, caption)


PARTS = (
    _part(gaussian.PROTOCOL, strength=_noise_strength, figures=_noise_figures),
    _part(
        shuffle.PROTOCOL,
        "The image is cut into k x k patches that are permuted: texture stays, shape goes, so a LOW figure speaks for "
        "shape; a guess gets one in the number of classes right.",
        title="Patch shuffle",
        strength=lambda _: "k",
        figures=_shuffle_figures,
    ),
    _part(
        amplitude.PROTOCOL,
        "Phase (shape) of one image, Fourier amplitude (texture) of one of another class.",
        columns=[numeric("amplitude's class", lambda cell: percent(cell.figure("amplitude_class_rate")))],
    ),
    _part(stylized.PROTOCOL, "The same pictures in another texture."),
)
