"""Things by name with options: ``NAME,key=value,key=value``."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dcn_plugin.errors import SpecError
from dcn_plugin.support.suggestions import closest

__all__ = ["Spec", "named", "parse_spec"]


@dataclass(frozen=True)
class Spec:
    """What was written on the command line.

    Args:
        head: what stands before the first comma.
        options: key -> value: a Python literal, a fraction such as 8/255, or else text.
    """

    head: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def call(self, make: Callable[..., Any], **more: Any) -> Any:
        """Call ``make`` with the options and ``more``; what it does not know is an error that lists what it knows."""
        if not callable(make):
            raise SpecError(f"{self.head} is no function.", type(make).__name__, "a function that can be called")
        parameters = inspect.signature(make).parameters
        open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for key in self.options:
            if key not in parameters and not open_ended:
                names = [name for name in parameters if name != "self"]
                raise SpecError(f"{self.head} has no option {key!r}.", key, ", ".join(names), closest(key, names))
        try:
            return make(**more, **self.options)
        except TypeError as error:  # a missing argument, or a value of another type
            raise SpecError(f"{self.head} does not take these options ({error}).", dict(self.options)) from error


def parse_spec(text: str) -> Spec:
    """Read ``head,key=value,...``; a comma within brackets or quotes separates nothing.

    Raises:
        SpecError: nothing stands before the first comma, an option has no "=", or stands there twice.
    """
    head, *pairs = _split(text)
    if not head:
        raise SpecError("This names nothing.", text, "NAME or NAME,key=value,...")
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier() or key in options:
            raise SpecError(f"{pair!r} is no option of its own.", text, "NAME,key=value,..., each key once")
        options[key] = _value(value.strip())
    return Spec(head, options)


def named(texts: Iterable[str], what: str) -> dict[str, str]:
    """Read ``NAME=SPEC`` arguments; without ``NAME=`` the spec is its own name.

    Raises:
        SpecError: two have the same name, or nothing stands before the "=".
    """
    specs: dict[str, str] = {}
    for text in texts:
        head = text.partition(",")[0]
        name, _, spec = text.partition("=") if "=" in head else (text, "", text)
        if not name.strip():
            raise SpecError(f"One of the {what} has no name.", text, "NAME=SPEC, or SPEC alone")
        if name in specs:
            raise SpecError(f"Two {what} have the same name.", name, "NAME=SPEC with different names")
        specs[name] = spec
    return specs


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def _value(text: str) -> Any:
    top, slash, bottom = text.partition("/")
    if slash:
        try:
            return float(top) / float(bottom)
        except (ValueError, ZeroDivisionError):
            return text  # a path
    if text.lower() in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
