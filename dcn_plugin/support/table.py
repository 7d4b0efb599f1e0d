"""A table of ready-made texts, and how it is written: for the terminal, as Markdown, as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dcn_plugin.errors import SpecError

__all__ = ["LATEX_PREAMBLE", "Table", "latex_document"]

LATEX_PREAMBLE = "% In the preamble: \\usepackage{booktabs,longtable}\n"

_LONG = 24
_LATEX_PAGE = 40

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "±": r"$\pm$",
    "×": r"$\times$",
    "σ": r"$\sigma$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class Table:
    """A table of ready-made texts.

    Args:
        title: one line.
        headers: one a column.
        rows: each as long as ``headers``.
        note: what a reader must know to read it.
        align: "l" or "r" a column; by default the first to the left, the others, being numbers, to the right.
        detail: it repeats what a figure shows; a page may fold it away with its like.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    align: str = ""
    detail: bool = False

    def __post_init__(self) -> None:
        if not self.align:
            object.__setattr__(self, "align", "l" + "r" * (len(self.headers) - 1))
        if {len(row) for row in self.rows} - {len(self.headers)} or len(self.align) != len(self.headers):
            raise SpecError(
                f"The rows of the table {self.title!r} do not fit its headers.",
                (len(self.headers), sorted({len(row) for row in self.rows}), self.align),
                "as many cells and letters as headers",
            )

    @property
    def long(self) -> bool:
        """Whether a page should fold it away for its length."""
        return len(self.rows) > _LONG

    def to_text(self) -> str:
        """For a terminal: aligned columns."""
        widths = [max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]
        lines = [self.title]
        for row in (self.headers, tuple("-" * width for width in widths), *self.rows):
            aligned = [
                cell.ljust(width) if side == "l" else cell.rjust(width)
                for cell, width, side in zip(row, widths, self.align, strict=True)
            ]
            lines.append("  ".join(aligned).rstrip())
        return "\n".join([*lines, *([self.note] if self.note else [])])

    def to_markdown(self) -> str:
        """As GitHub's Markdown."""
        rows = [[cell.replace("|", "\\|") for cell in row] for row in (self.headers, *self.rows)]
        rule = [{"l": ":--", "r": "--:"}[side] for side in self.align]
        lines = ["| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:])]
        return "\n".join([f"### {self.title}", "", *lines, *(["", self.note] if self.note else [])])

    def to_latex(self) -> str:
        """As LaTeX with booktabs; what does not fit on a page as a longtable. See :data:`LATEX_PREAMBLE`."""
        head, *body = (" & ".join(map(_escaped, row)) + r" \\" for row in (self.headers, *self.rows))
        caption = rf"\caption{{{_escaped(self.title)}}}"
        note = [rf"\par\smallskip{{\footnotesize {_escaped(self.note)}}}"] if self.note else []
        if len(self.rows) > _LATEX_PAGE:
            # The head after the caption is the first page's, the one before \endhead that of the pages after it.
            lines = [rf"\begin{{longtable}}{{{self.align}}}", caption + r" \\", r"\toprule", head, r"\midrule",
                     r"\endfirsthead", r"\toprule", head, r"\midrule", r"\endhead", *body, r"\bottomrule",
                     r"\end{longtable}", *note]  # fmt: skip
        else:
            lines = [r"\begin{table}", r"\centering", caption, rf"\begin{{tabular}}{{{self.align}}}", r"\toprule",
                     head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", *note, r"\end{table}"]  # fmt: skip
        return "\n".join(lines)


def latex_document(tables: Sequence[Table]) -> str:
    """All tables as one file that a document includes."""
    return LATEX_PREAMBLE + "".join(f"\n{table.to_latex()}\n" for table in tables)


def _escaped(text: str) -> str:
    # In one pass: what a replacement brings in must not be replaced again.
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)
