"""A whole report from records: tables, plots and the page, written into one folder."""

from __future__ import annotations

import base64
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcn_plugin.evaluate import Examples, Result
from dcn_plugin.report.conclusions import findings
from dcn_plugin.report.figures import examples_figure, grid_figures
from dcn_plugin.report.html import Section, render_html
from dcn_plugin.report.plots import ImageGrid
from dcn_plugin.report.protocols import parts_of
from dcn_plugin.report.tables import clean_table, records_csv
from dcn_plugin.report.warnings_for import cautions
from dcn_plugin.support.atomic_file import check_output, write_atomic
from dcn_plugin.support.table import Table, latex_document

__all__ = ["Report", "result_tables", "write_report"]

# Longer tables are named in a terminal, not printed.
_TERMINAL_ROWS = 60


@dataclass(frozen=True, eq=False)
class Report:
    """What a report is made of.

    Args:
        title: one line.
        results: the records.
        baseline: name of the target that the others are held against; None: nothing is compared.
        intro: paragraphs on what was done.
        facts: key -> value, how the results were made.
        examples: images to show with what the networks say, if there are any.
        grids: adversarial images to show, one figure each.
    """

    title: str
    results: Sequence[Result]
    baseline: str | None = None
    intro: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    examples: Examples | None = None
    grids: Sequence[ImageGrid] = ()

    @property
    def findings(self) -> list[str]:
        """Conclusions in words, computed from the records."""
        return findings(self.results, baseline=self.baseline)

    @property
    def cautions(self) -> list[str]:
        """What a reader must know before believing the tables."""
        return cautions(self.results)

    def to_text(self) -> str:
        """Tables and findings for a terminal."""
        blocks = [
            table.to_text()
            if len(table.rows) <= _TERMINAL_ROWS
            else f"{table.title}\n{len(table.rows)} rows, in tables.md and report.html"
            for table in self._tables
        ]
        blocks += ["\n".join([title, *(f"- {text}" for text in texts)]) for title, texts in self._lists if texts]
        return "\n\n".join(blocks)

    def to_markdown(self) -> str:
        """The same as Markdown, with title and introduction, every table whole."""
        blocks = [f"# {self.title}", *self.intro, *(table.to_markdown() for table in self._tables)]
        blocks += [
            "\n".join([f"### {title}", "", *(f"- {text}" for text in texts)]) for title, texts in self._lists if texts
        ]
        return "\n\n".join(blocks) + "\n"

    @property
    def _tables(self) -> list[Table]:
        """The tables one after the other, each note once."""
        seen: set[str] = set()
        tables = []
        for table in result_tables(self.results):
            tables.append(dataclasses.replace(table, note="") if table.note in seen else table)
            seen.add(table.note)
        return tables

    @property
    def _lists(self) -> tuple[tuple[str, list[str]], ...]:
        return ("Read with care", self.cautions), ("What the numbers say", self.findings)


def result_tables(results: Sequence[Result]) -> list[Table]:
    """Every table that the records have something for."""
    tables = [clean_table(results), *(table for part, records in parts_of(results) for table in part.tables(records))]
    return [table for table in tables if table.rows]


def write_report(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``report.html``, ``tables.md``, ``tables.tex``, ``records.csv`` and one PNG a figure, each atomically.

    A figure of the report that was there before, and is none of this one, is removed. The former page tells: it
    holds the same picture under the same name. No other file is touched.

    Args:
        report: what to show.
        folder: where to; made if need be.

    Returns:
        The files, the page first.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
        OutputError: files cannot be written there.
    """
    check_output(folder)
    sections = _sections(report)
    page = render_html(
        title=report.title,
        intro=report.intro,
        findings=report.findings,
        cautions=report.cautions,
        sections=sections,
        facts=report.facts,
    )
    content: dict[str, str | bytes] = {"report.html": page}
    content |= {f"{figure.name}.png": figure.png for section in sections for figure in section.figures}
    content |= {
        "tables.md": report.to_markdown(),
        "tables.tex": latex_document(result_tables(report.results)),
        "records.csv": records_csv(report.results),
    }
    files = {Path(folder) / name: data for name, data in content.items()}
    former = _former_figures(Path(folder))
    # The page last: where this is stopped before, the next report finds the former page and cleans up.
    first, *others = files
    for path in others:
        write_atomic(path, files[path])
    for figure in former - files.keys():
        figure.unlink(missing_ok=True)
    write_atomic(first, files[first])
    return list(files)


# A picture in the template, its name and content.
_PICTURE = re.compile(r'aria-label="Figure ([\w.-]+)">\s*<img src="data:image/png;base64,([A-Za-z0-9+/=]*)"')


def _former_figures(folder: Path) -> set[Path]:
    """The PNGs beside a page that are, byte for byte, the pictures on it."""
    try:
        page = (folder / "report.html").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return set()
    return {
        path
        for name, content in _PICTURE.findall(page)
        if (path := folder / f"{name}.png").is_file() and base64.b64encode(path.read_bytes()).decode() == content
    }


def _sections(report: Report) -> list[Section]:
    clean = clean_table(report.results)
    sections = [Section("clean", "Clean images", tables=[clean])] if clean.rows else []
    for part, records in parts_of(report.results):
        name = re.sub(r"[^a-z0-9]+", "-", part.name.lower())
        sections.append(Section(name, part.heading, part.figures(records), part.tables(records)))
    images = [*([examples_figure(report.examples)] if report.examples else []), *grid_figures(report.grids)]
    if images:
        sections.append(Section("images", "Images", images))
    return sections
