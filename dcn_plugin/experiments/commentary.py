"""What people add to a committed record, in ``finding.toml`` beside it: the likely reason, and a claim in words."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from dcn_plugin.errors import SpecError
from dcn_plugin.support.suggestions import check_known

__all__ = ["FINDING", "Claim", "Finding", "read_finding"]

FINDING = "finding.toml"

Claim = Literal["higher", "lower"]
_KEYS = ("reason", "claim", "words")


@dataclass(frozen=True)
class Finding:
    """Prose beside a record: everything in it that is a number is computed elsewhere.

    Args:
        reason: why the record comes out as it does, most likely; one or two sentences.
        claim: where the paper gives no numbers but says it in words: its rows lie "higher" than the standard one, or
            "lower".
        words: what it says, and where: the end of a sentence that begins "The paper says in words that".
    """

    reason: str
    claim: Claim | None = None
    words: str = ""


def read_finding(path: Path) -> Finding | None:
    """Read a finding; None where there is no such file.

    Raises:
        SpecError: it is no TOML, has an unknown key or claim (the nearest names are in the message), or lacks its
            reason or the words of its claim.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is no TOML ({error}).") from error
    for key in raw:
        check_known("key of a finding", key, _KEYS)
    needed = ("reason", "words") if "claim" in raw else ("reason",)
    for key in needed:
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise SpecError("A finding lacks an entry.", sorted(raw), f"a sentence {key!r}")
    if "claim" in raw:
        check_known("claim", str(raw["claim"]), get_args(Claim))
    return Finding(raw["reason"].strip(), raw.get("claim"), raw.get("words", "").strip())
