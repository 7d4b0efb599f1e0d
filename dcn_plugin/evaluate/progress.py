"""A progress bar on stderr that can be switched off and is silent where there is no terminal."""

from __future__ import annotations

from typing import Any

from dcn_plugin.evaluate.team import ALONE, Team

__all__ = ["progress_bar"]


def progress_bar(total: int, what: str, *, show: bool, unit: str = "image", team: Team = ALONE) -> Any:
    """A tqdm bar over ``total`` units; a context manager with ``update(n)`` and ``set_description(text)``.

    Of several processes only the first shows one.
    """
    from tqdm import tqdm  # ships with huggingface_hub, which timm needs

    hidden = None if show and team.leads else True
    return tqdm(total=total, desc=what, unit=unit, disable=hidden, leave=False, dynamic_ncols=True)
