from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest

from dcn_plugin.engine.constant_cache import derived


@pytest.fixture
def lists() -> Iterator[Callable[[], int]]:
    """How many lists and packed weights are kept for models of this test."""
    gc.collect()
    before = set(derived._entries)
    yield lambda: len(set(derived._entries) - before)
