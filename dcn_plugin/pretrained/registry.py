"""Which pretrained networks there are: those that come with the package, and those that were registered."""

from __future__ import annotations

import fnmatch
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from dcn_plugin.errors import PretrainedError
from dcn_plugin.pretrained.card import PretrainedCard
from dcn_plugin.support.suggestions import closest

__all__ = ["Entry", "find_entry", "list_pretrained", "pretrained_card", "register_pretrained"]

_SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Entry:
    """A card, and the folder it was read from (None for one made in Python)."""

    card: PretrainedCard
    folder: Path | None


_registered: dict[str, Entry] = {}


def list_pretrained(pattern: str = "*") -> list[str]:
    """Names of the pretrained networks, sorted, as ``timm.list_pretrained`` gives them.

    Args:
        pattern: a glob, e.g. "digits_resnet.*".
    """
    return fnmatch.filter(sorted(_entries()), pattern)


def pretrained_card(name: str) -> PretrainedCard:
    """The card of a pretrained network.

    Raises:
        PretrainedError: there is none of that name.
    """
    return find_entry(name).card


def register_pretrained(card: PretrainedCard | str | os.PathLike[str], *, replace: bool = False) -> PretrainedCard:
    """Make a network of your own known by its name, in this process.

    Args:
        card: the card, or the path of its JSON file; weights that lie beside that file need no URL.
        replace: take the place of another card of that name.

    Returns:
        The card.

    Raises:
        PretrainedError: the card is not usable, says nowhere where its weights are, or its name is taken.
        OSError: the file cannot be read.
    """
    if isinstance(card, PretrainedCard):
        entry = Entry(card, None)
    else:
        path = Path(card).expanduser().resolve()
        entry = Entry(PretrainedCard.read(path), path.parent)
    new_card = entry.card
    if new_card.url is None and (entry.folder is None or not (entry.folder / new_card.file).is_file()):
        raise PretrainedError(
            f"The card of {new_card.name} does not say where its weights are.",
            f"url=None, and no {new_card.file} beside the card",
            "a url, or the file beside the card's JSON file",
        )
    taken = _entries().get(new_card.name)
    if taken is not None and taken != entry and not replace:
        raise PretrainedError(
            "Another pretrained network has this name.",
            new_card.name,
            "a name that is free",
            "choose another name, or pass replace=True",
        )
    _registered[new_card.name] = entry
    return new_card


def find_entry(name: str) -> Entry:
    """The entry of a name.

    Raises:
        PretrainedError: there is none.
    """
    entries = _entries()
    if name not in entries:
        raise PretrainedError(
            "There is no pretrained network of this name.",
            name,
            ", ".join(sorted(entries)),
            closest(name, entries) or "register a card of yours with register_pretrained()",
        )
    return entries[name]


def _entries() -> dict[str, Entry]:
    return {**_shipped(), **_registered}


@functools.cache
def _shipped() -> dict[str, Entry]:
    cards = [PretrainedCard.read(path) for path in sorted(_SHIPPED.glob("*.json"))]
    return {card.name: Entry(card, _SHIPPED) for card in cards}
