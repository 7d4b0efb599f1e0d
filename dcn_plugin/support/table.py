"""Tables of ready-made texts, and how they are written: for the terminal, as Markdown, as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dcn_plugin.errors import SpecError

__all__ = ["LATEX_PREAMBLE", "Table", "aligned", "latex_document", "markdown"]

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
        rule = ["-" * max(map(len, column)) for column in zip(self.headers, *self.rows, strict=True)]
        lines = [self.title, *aligned([self.headers, rule, *self.rows], self.align)]
        return "\n".join([*lines, *([self.note] if self.note else [])])

    def to_markdown(self) -> str:
        """As GitHub's Markdown."""
        lines = markdown(self.headers, self.rows, self.align)
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


def aligned(rows: Sequence[Sequence[str]], align: str = "") -> list[str]:
    """The rows of a table as lines for a terminal.

    Args:
        rows: of texts, all of the same length.
        align: "l" or "r" a column; by default all to the left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.rjust if side == "r" else str.ljust for side in align.ljust(len(widths), "l")]
    return [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in rows
    ]


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> list[str]:
    """A table as lines of GitHub's Markdown.

    Args:
        headers: one a column.
        rows: each as long as ``headers``.
        align: "l" or "r" a column; by default the first to the left, the others to the right.
    """
    rule = [":--" if side == "l" else "--:" for side in align or "l".ljust(len(headers), "r")]
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in (headers, *rows))
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]


def latex_document(tables: Sequence[Table]) -> str:
    """All tables as one file that a document includes."""
    return LATEX_PREAMBLE + "".join(f"\n{table.to_latex()}\n" for table in tables)


def _escaped(text: str) -> str:
    # In one pass: what a replacement brings in must not be replaced again.
    return re.sub("|".join(map(re.escape, _LATEX)), lambda match: _LATEX[match[0]], text)
