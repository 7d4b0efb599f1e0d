"""A report as one HTML file that asks nothing of the network: styles and images are inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dcn_plugin.errors import MissingExtraError
from dcn_plugin.report.aggregate import FAIL, PASS, UNKNOWN
from dcn_plugin.support.table import Table

__all__ = ["Figure", "Section", "render_html"]


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Args:
        name: of its file, without the ending.
        png: the picture.
        alt: what it shows, for those who cannot see it.
        caption: how to read it.
        wide: may take the width of the page.
        folded: a page may fold it away.
    """

    name: str
    png: bytes
    alt: str
    caption: str
    wide: bool = False
    folded: bool = False

    @property
    def base64(self) -> str:
        """The picture as text for a data: address."""
        return base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as the PNG's header says, so that the page does not jump while it loads."""
        return int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big")


@dataclass(frozen=True)
class Section:
    """One heading of the page and what belongs under it.

    Args:
        name: for its address within the page, of letters and dashes.
        heading: for a reader.
        figures: in order.
        tables: in order.
    """

    name: str
    heading: str
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()

    @property
    def open_figures(self) -> list[Figure]:
        """Those that are seen at once."""
        return [figure for figure in self.figures if not figure.folded]

    @property
    def folded_figures(self) -> list[Figure]:
        """Those that are seen on demand."""
        return [figure for figure in self.figures if figure.folded]

    @property
    def main_tables(self) -> list[Table]:
        """Those that stand for themselves, the short ones first."""
        return sorted((table for table in self.tables if not table.detail), key=lambda table: table.long)

    @property
    def detail_tables(self) -> list[Table]:
        """Those that repeat what a figure shows."""
        return [table for table in self.tables if table.detail]


def render_html(
    *,
    title: str,
    intro: Sequence[str],
    findings: Sequence[str],
    cautions: Sequence[str],
    sections: Sequence[Section],
    facts: Mapping[str, str],
) -> str:
    """Fill the template.

    Args:
        title: of the page.
        intro: paragraphs.
        findings: one list item each.
        cautions: what a reader must know first, one list item each.
        sections: in order.
        facts: key -> value, how the results were made.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError(
            "The HTML report is made with jinja2, which is not installed.", fix='pip install "dcn-plugin[report]"'
        ) from error
    loader = PackageLoader("dcn_plugin.report")
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        intro=intro,
        findings=findings,
        cautions=cautions,
        sections=sections,
        facts=facts,
        verdicts={PASS: "pass", FAIL: "fail", UNKNOWN: "unknown"},
    )
