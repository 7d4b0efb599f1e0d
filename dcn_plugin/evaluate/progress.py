"""A progress bar on stderr that can be switched off and is silent where there is no terminal."""

from __future__ import annotations

from typing import Any

__all__ = ["progress_bar"]


def progress_bar(total: int, what: str, *, show: bool, unit: str = "image") -> Any:
    """A tqdm bar over ``total`` units; a context manager with ``update(n)`` and ``set_description(text)``."""
    from tqdm import tqdm  # ships with huggingface_hub, which timm needs

    return tqdm(total=total, desc=what, unit=unit, disable=None if show else True, leave=False, dynamic_ncols=True)
