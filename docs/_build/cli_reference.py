"""The page on the command line, written from its argument parsers."""

from __future__ import annotations

import argparse
import html
import textwrap
from collections.abc import Iterator
from typing import Any

from dcn_plugin.cli import _parser

__all__ = ["cli_page"]

_HEAD = """# Command line

Installed as `defective`; `python -m dcn_plugin.cli` is the same. This page is written from the parsers themselves.

Exit status: 0; 2 after an error that you can mend, told in one line on stderr; 130 after an interrupt (what is finished is kept).
"""
_WIDTH = 100


def cli_page(parser: argparse.ArgumentParser | None = None) -> str:
    """The whole page as Markdown: a section a command, a table of its arguments."""
    sections = [_section(one, depth) for one, depth in _walk(parser or _parser(), 0)]
    return "\n".join([_HEAD, *sections])


def _walk(parser: argparse.ArgumentParser, depth: int) -> Iterator[tuple[argparse.ArgumentParser, int]]:
    yield parser, depth
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                yield from _walk(child, depth + 1)


def _section(parser: argparse.ArgumentParser, depth: int) -> str:
    lines = [f"{'#' * min(depth + 1, 4)} {parser.prog}", ""] if depth else []
    description = _text(parser.description or "")
    lines += [description[:1].upper() + description[1:], ""]
    lines += ["```text", _usage(parser), "```", ""]
    rows = [row for action in parser._actions if (row := _row(action)) is not None]
    if rows:
        lines += ["| argument | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def _usage(parser: argparse.ArgumentParser) -> str:
    def formatter(prog: str) -> argparse.HelpFormatter:
        return argparse.HelpFormatter(prog, width=_WIDTH)

    parser.formatter_class = formatter  # type: ignore[assignment]  # a function that makes one will do
    return textwrap.dedent(" " * len("usage: ") + parser.format_usage().removeprefix("usage: ")).rstrip()


def _row(action: argparse.Action) -> str | None:
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help is argparse.SUPPRESS:
        return None
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    value = f" {_value(action)}" if action.option_strings and action.nargs != 0 else ""
    required = "required; " if action.required and action.option_strings else ""
    return f"| `{name}{value}` | {required}{_text(_help(action))} |"


def _value(action: argparse.Action) -> str:
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


def _help(action: argparse.Action) -> str:
    known: dict[str, Any] = {key: value for key, value in vars(action).items() if value is not argparse.SUPPRESS}
    return (action.help or "") % {**known, "prog": "defective"}


def _text(text: str) -> str:
    """Safe inside a Markdown table."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
