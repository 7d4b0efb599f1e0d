"""Tables of records: for the terminal, as Markdown, and as CSV with one raw record a row."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from dcn_plugin.evaluate import Result, Scalar, spread
from dcn_plugin.report.groups import Cell, cells, clean_cells, percent

__all__ = ["Table", "records_csv", "result_tables"]

ENVELOPE = "Intervals are Wilson 95 %; over several runs, from the lowest lower to the highest upper bound."


@dataclass(frozen=True)
class Table:
    """A table of ready-made texts.

    Args:
        title: one line.
        headers: one a column.
        rows: each as long as ``headers``.
        note: what a reader must know to read it.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def to_text(self) -> str:
        """For a terminal: aligned columns, the first to the left, numbers to the right."""
        widths = [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]
        lines = [self.title]
        for row in (self.headers, tuple("-" * width for width in widths), *self.rows):
            first, *rest = zip(row, widths, strict=True)
            aligned = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
            lines.append("  ".join(aligned).rstrip())
        return "\n".join([*lines, *([self.note] if self.note else [])])

    def to_markdown(self) -> str:
        """As GitHub's Markdown."""
        rows = [[cell.replace("|", "\\|") for cell in row] for row in (self.headers, *self.rows)]
        rule = [":--", *["--:"] * (len(self.headers) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else [])])


def result_tables(results: Sequence[Result]) -> list[Table]:
    """Every table that the records have something for."""
    makers = (_clean_table, _source_table, _transfer_table, _gaussian_table)
    return [table for table in (make(results) for make in makers) if table.rows]


def records_csv(results: Sequence[Result]) -> str:
    """One record a row: every field that is a plain value, intervals as two columns."""
    rows = [_flat(result) for result in results]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _flat(result: Result) -> dict[str, Scalar]:
    flat = {key: value for key, value in result.to_dict().items() if not isinstance(value, dict | list)}
    bounds = {"defense": result.defense_interval, "accuracy": result.accuracy_interval}
    flat.pop("defense_interval", None)  # None where there is none, two columns here in any case
    for name, interval in bounds.items():
        flat |= {f"{name}_low": interval and interval[0], f"{name}_high": interval and interval[1]}
    return flat


def _clean_table(results: Sequence[Result]) -> Table:
    rows = []
    for source in _sources(results):
        # Every record of one seed carries the same counts of its source.
        runs = {r.seed: r for r in results if r.source == source and r.n_source_correct is not None}.values()
        shares = spread([(r.n_source_correct or 0) / r.n_total for r in runs])
        right = sum(r.n_source_correct or 0 for r in runs)
        rows.append((f"{source} (attacked)", percent(shares), _of(right, sum(r.n_total for r in runs))))
    for cell in clean_cells(results):
        rows.append((cell.target, percent(cell.clean), _of(cell.total("n_clean_correct"), cell.total("n_total"))))
    return Table("Clean accuracy", ("network", "accuracy", "right / images"), tuple(rows), _runs_note(results))


def _source_table(results: Sequence[Result]) -> Table:
    rows = []
    seen = set()
    for cell in cells(results, protocol="transfer"):
        if (cell.source, cell.attack, cell.eps) in seen:
            continue
        seen.add((cell.source, cell.attack, cell.eps))
        rows.append(
            (
                f"{cell.source}",
                f"{cell.attack}",
                _number(cell.eps),
                _of(cell.total("n_source_fooled"), cell.total("n_source_correct")),
                str(cell.total("n_zero_gradient")),
            )
        )
    return Table(
        "The attack on its source",
        ("source", "attack", "eps", "fooled / right when clean", "zero gradient"),
        tuple(rows),
        "Zero gradient: images on which the source's loss had no gradient at some step; there the attack stood still.",
    )


def _transfer_table(results: Sequence[Result]) -> Table:
    return Table(
        "Transfer attacks",
        ("network", "eps", "defence rate", *_COUNTS),
        tuple(map(_row, cells(results, protocol="transfer"))),
        "Defence rate (the paper's): of the images that fooled the source and that the network classifies correctly "
        f"when clean, the share it still gets right. Accuracy: of all images. {ENVELOPE}",
    )


def _gaussian_table(results: Sequence[Result]) -> Table:
    return Table(
        "Gaussian noise",
        ("network", "sigma", "still right", *_COUNTS),
        tuple(map(_row, cells(results, protocol="gaussian"))),
        "Still right: of the images that every network classifies correctly when clean. Accuracy: of all images. "
        f"{ENVELOPE}",
    )


_COUNTS = ("95 %", "held / counted", "accuracy", "95 %", "right / images")


def _row(cell: Cell) -> tuple[str, ...]:
    return (
        cell.target,
        _number(cell.eps),
        percent(cell.defense),
        _interval(cell.defense_interval),
        _of(cell.total("n_defended"), cell.total("n_counted")),
        percent(cell.accuracy),
        _interval(cell.accuracy_interval),
        _of(cell.total("n_correct"), cell.total("n_total")),
    )


def _sources(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(r.source for r in results if r.source is not None))


def _runs_note(results: Sequence[Result]) -> str:
    seeds = sorted({r.seed for r in results})
    if len(seeds) < 2:
        return ""
    named = ", ".join(map(str, seeds))
    return (
        f"Mean ± standard deviation over {len(seeds)} runs (seeds {named}); counts are sums over them, here and below."
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _of(part: int, whole: int) -> str:
    return f"{part} / {whole}"


def _interval(bounds: tuple[float, float] | None) -> str:
    return "–" if bounds is None else f"{100 * bounds[0]:.1f}–{100 * bounds[1]:.1f} %"
