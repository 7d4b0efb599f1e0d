"""Numbers as a person reads them. A figure that does not exist is a dash."""

from __future__ import annotations

from collections.abc import Iterable

from dcn_plugin.support.statistics import Spread

__all__ = ["DASH", "Scalar", "counted", "interval", "listed", "number", "percent", "points", "value"]

DASH = "–"
Scalar = str | int | float | bool | None
"""A plain value of a record."""


def percent(share: Spread | float | None, *, unit: str = " %") -> str:
    """A share: "34.1 %", over several runs "34.1 ± 2.0 %" (sample standard deviation)."""
    if share is None:
        return DASH
    if isinstance(share, Spread):
        if share.std is not None:
            return f"{100 * share.mean:.1f} ± {100 * share.std:.1f}{unit}"
        share = share.mean
    return f"{100 * share:.1f}{unit}"


def points(difference: float) -> str:
    """A difference of two shares: "+2.5 points"."""
    return f"{100 * difference:+.1f} points"


def interval(bounds: tuple[float, float] | None) -> str:
    """An interval of a share: "39.3–60.7 %"."""
    return DASH if bounds is None else f"{100 * bounds[0]:.1f}{DASH}{100 * bounds[1]:.1f} %"


def counted(part: int | None, whole: int | None) -> str:
    """A count out of another: "40 / 80"."""
    return f"{DASH if part is None else part} / {DASH if whole is None else whole}"


def number(figure: float | None) -> str:
    """A strength or a setting: "8/255" for 8 grey levels of 255, "0.2" for what is short as a decimal, "25000"."""
    if figure is None:
        return DASH
    if figure == round(figure, 3):
        return f"{figure:.15g}"
    levels = 255 * figure
    # Half levels too: 0.5/255 is what rounding to 8 bits may add.
    if abs(2 * levels - round(2 * levels)) < 1e-6 and round(2 * levels):
        return f"{round(2 * levels) / 2:g}/255"
    return f"{figure:.4g}"


def value(scalar: Scalar) -> str:
    """Any plain value of a record."""
    if scalar is None:
        return DASH
    if isinstance(scalar, bool):
        return "yes" if scalar else "no"
    return scalar if isinstance(scalar, str) else number(scalar)


def listed(names: Iterable[object], *, most: int = 6) -> str:
    """Different names in order, the rest as a number: "a, b and 3 more"."""
    unique = list(dict.fromkeys(map(str, names)))
    rest = len(unique) - most
    return ", ".join(unique[:most]) + (f" and {rest} more" if rest > 0 else "")
