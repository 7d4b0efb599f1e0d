"""Arguments as callers give them: numbers of NumPy and torch are taken, what is not usable is a named error."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, SupportsFloat, SupportsIndex, cast, get_args

import numpy as np
from torch import Tensor

from dcn_plugin.errors import DcnError, SpecError

__all__ = ["check_choice", "check_count", "check_number", "check_rules", "is_count", "is_number", "plain"]


def plain(value: Any) -> Any:
    """The Python value that a NumPy scalar, or an array or tensor without dimensions, stands for; others unchanged."""
    scalar = isinstance(value, np.generic) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0)
    return value.item() if scalar else value


def is_number(value: object) -> bool:
    """Whether it is a Python number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: object, *, least: int = 0) -> bool:
    """Whether it is a Python int of at least ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def check_count(given: object, what: str, *, least: int = 1) -> int:
    """An integer from ``least`` on, also one of NumPy or in a tensor of one element.

    Raises:
        SpecError: it is none.
    """
    try:
        value = least - 1 if isinstance(given, bool) else operator.index(cast(SupportsIndex, given))
    except (TypeError, ValueError, RuntimeError):
        value = least - 1
    if value < least:
        raise SpecError(f"The {what} is not usable.", given, f"an int >= {least}")
    return value


def check_number(given: object, what: str) -> float:
    """A finite number, also one of NumPy or in a tensor of one element.

    Raises:
        SpecError: it is none.
    """
    single = isinstance(given, Tensor) and given.numel() == 1 and given.ndim == 0
    usable = single or (isinstance(given, SupportsFloat) and not isinstance(given, str | bool | Tensor))
    try:
        value = float(cast(SupportsFloat, given)) if usable else math.nan
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(f"The {what} is no number.", given, "a finite number, e.g. 8 / 255")
    return value


def check_choice(what: str, value: object, literal: Any) -> None:
    """Refuse what is not one of a ``Literal``'s values.

    Raises:
        SpecError: it is not.
    """
    if value not in get_args(literal):
        raise SpecError(f"Unknown {what}.", value, ", ".join(map(repr, get_args(literal))))


def check_rules(
    what: str, values: Mapping[str, Any], rules: Mapping[str, tuple[bool, str]], *, error: type[DcnError] = SpecError
) -> None:
    """Refuse the first value that breaks its rule.

    Args:
        what: the message, with ``{name}`` in it.
        values: name -> value.
        rules: name -> whether its value is usable, and what would be.
        error: what to raise.

    Raises:
        DcnError: one does; it is of the type ``error``.
    """
    for name, (usable, allowed) in rules.items():
        if not usable:
            raise error(what.replace("{name}", name), values[name], allowed)
