"""What to suggest for a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from dcn_plugin.errors import SpecError

__all__ = ["check_known", "closest"]


def closest(name: str, names: Iterable[str]) -> str | None:
    """The question "did you mean ...?" with the at most three names closest to one that does not exist.

    Small and capital letters are the same. None if no name is close.
    """
    by_small = {text.lower(): text for text in reversed(list(names))}  # of two the first
    near = difflib.get_close_matches(str(name).lower(), by_small, n=3)
    return f"did you mean {', '.join(by_small[text] for text in near)}?" if near else None


def check_known(what: str, name: str, names: Collection[str]) -> None:
    """Refuse a name that is not among ``names``, with the nearest ones.

    Raises:
        SpecError: it is not.
    """
    if name not in names:
        raise SpecError(f"Unknown {what}.", name, ", ".join(names), closest(name, names))
