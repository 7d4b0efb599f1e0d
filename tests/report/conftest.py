from __future__ import annotations

from collections.abc import Iterator

import pytest

from dcn_plugin.report.plots import canvas


@pytest.fixture(scope="module", autouse=True)
def _few_pixels() -> Iterator[None]:
    """Draw plots with a ninth of their pixels: what is asked of them shows there too, and sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "_DPI", 60)
        yield
