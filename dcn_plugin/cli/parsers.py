"""Parsers that name the word closest to a misspelt one, and help texts whose words stay whole."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from dcn_plugin.support.suggestions import closest

__all__ = ["Formatter", "Parser", "wrapped"]


class Formatter(argparse.HelpFormatter):
    """Help whose lines end between words; argparse itself cuts long words, and others at their hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in wrapped(text, width - len(indent)))


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most ``width`` characters that hold whole words.

    A word that is longer than a line, such as a model with many options, goes on after one of its commas; where it has
    none it stands out.
    """
    lines = [""]
    for word in text.split():
        pieces = [word] if len(word) <= width else re.findall(r"[^,]*,|[^,]+", word)
        gap = " "
        for piece in pieces:
            if lines[-1] and len(lines[-1]) + len(gap) + len(piece) > width:
                lines.append("")
            lines[-1] += (gap if lines[-1] else "") + piece
            gap = ""
    return lines


class Parser(argparse.ArgumentParser):
    """A parser that suggests: options, subcommands and choices that are close to what was written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": Formatter, **kwargs})
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but what this parser does not know is an error here, where its options are known."""
        self._given = list(sys.argv[1:] if args is None else args)
        values, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return values, rest

    def error(self, message: str) -> NoReturn:
        """Usage, the message and the options that a misspelt one may stand for; exit status 2."""
        # A misspelt option is often one that is then missing.
        about_options = message.startswith(("unrecognized arguments", "the following arguments are required"))
        hints = [hint for text in self._unknown() if (hint := self._hint(text))] if about_options else []
        super().error("; ".join([message, *hints]))

    def _unknown(self) -> list[str]:
        """What looks like an option, and is none, nor the beginning of one."""
        looks = [text.partition("=")[0] for text in self._given if re.match(r"--\w", text)]
        return [text for text in looks if not any(name.startswith(text) for name in self._option_string_actions)]

    def _hint(self, text: str) -> str | None:
        near = closest(text, self._option_string_actions)
        return None if near is None else f"{text}: {near}"

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices: Sequence[str] = [str(choice) for choice in action.choices or ()]
        if action.choices is not None and value not in action.choices:
            near = closest(str(value), choices)
            more = f"; {near}" if near is not None else ""
            raise argparse.ArgumentError(action, f"invalid choice: {value!r} (choose from {', '.join(choices)}){more}")
