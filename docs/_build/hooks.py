"""What mkdocs does beside its plugins: lay the generated pages over docs/, and turn formulas into MathML.

Runs in the environment of the docs tools, which does not have the package: standard library, mkdocs and latex2mathml.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

_PAGES = Path(__file__).resolve().parents[2] / "build" / "docs" / "pages"
# What pymdownx.arithmatex makes of $...$ and $$...$$ in its generic mode.
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# A Sphinx role in a docstring, as Markdown leaves it: :class:`~package.Name`.
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>([^<]+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages and their files."""
    if not _PAGES.is_dir():
        raise PluginError("The generated pages are missing: run 'make docs', or python -m docs._build.generate first.")
    for path in sorted(_PAGES.rglob("*")):
        if path.is_file():
            name = path.relative_to(_PAGES).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_post_page(output: str, **_: Any) -> str:
    """Give the theme's search dialog the name that it lacks."""
    return output.replace('data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"')


def on_page_content(text: str, **_: Any) -> str:
    """Write formulas as MathML, which browsers show without a script or a font, and link the roles of docstrings."""
    return _ROLE.sub(_reference, _FORMULA.sub(_mathml, text))


def _reference(role: re.Match[str]) -> str:
    """What mkdocs-autorefs turns into a link, or into plain code where there is nothing to link."""
    name, target = role[1].rpartition(".")[2] if role[1].startswith("~") else role[1], role[1].lstrip("~")
    return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'


def _mathml(formula: re.Match[str]) -> str:
    shown = convert(html.unescape(formula[2]).strip(), display="block" if formula[1] == "div" else "inline")
    return f'<div class="formula">{shown}</div>' if formula[1] == "div" else shown
