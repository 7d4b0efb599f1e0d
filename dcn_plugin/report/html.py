"""A report as one HTML file that asks nothing of the network: styles and images are inside."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dcn_plugin.errors import MissingExtraError
from dcn_plugin.report.tables import Table

__all__ = ["Figure", "render_html"]


@dataclass(frozen=True)
class Figure:
    """A picture of the report.

    Args:
        name: of its file, without the ending.
        png: the picture.
        alt: what it shows, for those who cannot see it.
        caption: how to read it.
        wide: may take the width of the page.
    """

    name: str
    png: bytes
    alt: str
    caption: str
    wide: bool = False

    @property
    def base64(self) -> str:
        """The picture as text for a data: address."""
        return base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as the PNG's header says, so that the page does not jump while it loads."""
        return int.from_bytes(self.png[16:20], "big"), int.from_bytes(self.png[20:24], "big")


def render_html(
    *,
    title: str,
    intro: Sequence[str],
    findings: Sequence[str],
    figures: Sequence[Figure],
    tables: Sequence[Table],
    facts: Mapping[str, str],
) -> str:
    """Fill the template.

    Args:
        title: of the page.
        intro: paragraphs.
        findings: one list item each.
        figures: in order.
        tables: in order.
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
        title=title, intro=intro, findings=findings, figures=figures, tables=tables, facts=facts
    )
