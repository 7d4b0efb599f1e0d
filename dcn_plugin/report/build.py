"""A whole report from records: tables, plots and the page, written into one folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcn_plugin.evaluate import Examples, Result
from dcn_plugin.files import write_atomic
from dcn_plugin.report.findings import findings
from dcn_plugin.report.groups import cells, percent
from dcn_plugin.report.html import Figure, render_html
from dcn_plugin.report.plots import Rate, examples_png, rate_png
from dcn_plugin.report.tables import records_csv, result_tables

__all__ = ["Report", "write_report"]


@dataclass(frozen=True, eq=False)
class Report:
    """What a report is made of.

    Args:
        title: one line.
        results: the records.
        baseline: name of the target that the others are held against.
        intro: paragraphs on what was done.
        facts: key -> value, how the results were made.
        examples: images to show, if there are any.
    """

    title: str
    results: Sequence[Result]
    baseline: str
    intro: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    examples: Examples | None = None

    @property
    def findings(self) -> list[str]:
        """Conclusions in words, computed from the records."""
        return findings(self.results, baseline=self.baseline)

    def to_text(self) -> str:
        """Tables and findings for a terminal."""
        blocks = [table.to_text() for table in result_tables(self.results)]
        if self.findings:
            blocks.append("\n".join(["What the numbers say", *(f"- {sentence}" for sentence in self.findings)]))
        return "\n\n".join(blocks)

    def to_markdown(self) -> str:
        """The same as Markdown, with title and introduction."""
        blocks = [f"# {self.title}", *self.intro, *(table.to_markdown() for table in result_tables(self.results))]
        if self.findings:
            blocks.append("\n".join(["### What the numbers say", "", *(f"- {s}" for s in self.findings)]))
        return "\n\n".join(blocks) + "\n"


def write_report(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``report.html``, ``tables.md``, ``records.csv`` and one PNG a figure, each atomically.

    Args:
        report: what to show.
        folder: where to; made if need be.

    Returns:
        The files, the page first.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    figures = _figures(report)
    page = render_html(
        title=report.title,
        intro=report.intro,
        findings=report.findings,
        figures=figures,
        tables=result_tables(report.results),
        facts=report.facts,
    )
    content: dict[str, str | bytes] = {"report.html": page}
    content |= {f"{figure.name}.png": figure.png for figure in figures}
    content |= {"tables.md": report.to_markdown(), "records.csv": records_csv(report.results)}
    for name, data in content.items():
        write_atomic(Path(folder) / name, data)
    return [Path(folder) / name for name in content]


_BARS = "Lines: mean over the runs; small circles: single runs; bars: 95 % intervals (their envelope over the runs)."


def _figures(report: Report) -> list[Figure]:
    results = report.results
    figures = []
    wanted: tuple[tuple[str, str, Rate, str, str, str], ...] = (
        ("transfer_accuracy", "transfer", "accuracy", "eps", "accuracy, all images (%)",
         "Accuracy on all images after a transfer attack; at eps 0 the clean accuracy."),
        ("transfer_defense", "transfer", "defense", "eps", "defence rate (%)",
         "Defence rate: of the images that fooled the source and that the network has right when clean, the share it "
         "still gets right."),
        ("gaussian", "gaussian", "accuracy", "sigma", "accuracy, all images (%)",
         "Accuracy on all images under Gaussian noise; at sigma 0 the clean accuracy."),
    )  # fmt: skip
    for name, protocol, rate, strength, label, caption in wanted:
        if any(rate == "accuracy" or cell.defense is not None for cell in cells(results, protocol=protocol)):
            xlabel = f"{strength} (pixels lie in [0, 1])"
            png = rate_png(results, protocol=protocol, rate=rate, xlabel=xlabel, ylabel=label)
            figures.append(Figure(name, png, _alt(results, protocol, rate, strength), f"{caption} {_BARS}"))
    if report.examples is not None:
        figures.append(_examples_figure(report.examples))
    return figures


def _examples_figure(examples: Examples) -> Figure:
    states = ", ".join(row.title for row in examples.rows)
    digits = ", ".join(map(str, examples.labels.tolist()))
    return Figure(
        "examples",
        examples_png(examples),
        f"Grid of {len(examples.labels)} images of the classes {digits} in the states {states}"
        + (f", then {len(examples.masks)} defect masks, white where a neuron is kept." if examples.masks else "."),
        f"{examples.chosen} Below each image: what every network says it is."
        + (" Last row: defect masks, white = kept." if examples.masks else ""),
        wide=True,
    )


def _alt(results: Sequence[Result], protocol: str, rate: Rate, strength: str) -> str:
    """The plot in words: every line, point by point."""
    lines: dict[str, list[str]] = {}
    for cell in cells(results, protocol=protocol):
        value = cell.accuracy if rate == "accuracy" else cell.defense
        lines.setdefault(cell.target, []).append(f"{percent(value)} at {cell.eps}")
    what = "Accuracy" if rate == "accuracy" else "Defence rate"
    return f"{what} over {strength}. " + "; ".join(f"{name}: {', '.join(p)}" for name, p in lines.items()) + "."
