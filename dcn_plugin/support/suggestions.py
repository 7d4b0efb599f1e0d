"""What to suggest for a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from dcn_plugin.errors import SpecError

__all__ = ["check_known", "closest", "similar"]


def closest(name: str, names: Iterable[str]) -> str | None:
    """The question "did you mean ...?" with the names closest to one that does not exist; None if none is close."""
    near = similar(name, names)
    return f"did you mean {', '.join(near)}?" if near else None


def similar(name: str, names: Iterable[str], *, most: int = 3) -> list[str]:
    """The names most similar to one that does not exist, the most similar first; often none."""
    return difflib.get_close_matches(str(name), list(names), n=most)


def check_known(what: str, name: str, names: Collection[str]) -> None:
    """Refuse a name that is not among ``names``, with the nearest ones.

    Raises:
        SpecError: it is not.
    """
    if name not in names:
        raise SpecError(f"Unknown {what}.", name, ", ".join(names), closest(name, names))
