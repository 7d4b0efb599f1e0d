from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.data import ImageSet
from tests.toys import image_set, linear_model


class Asked(nn.Module):
    """Counts the images it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._rows = 0

    @property
    def rows(self) -> int:
        return self._rows

    def forward(self, x: Tensor) -> Tensor:
        self._rows += len(x)
        logits: Tensor = self.model(x)
        return logits


@pytest.fixture
def models() -> dict[str, Asked]:
    """Two models that mostly agree, so that some attacks transfer and some do not."""
    a, b = linear_model(16, seed=0), linear_model(16, seed=1)
    with torch.no_grad():
        for mine, other in zip(b.parameters(), a.parameters(), strict=True):
            mine.lerp_(other, 0.6)
    return {"a": Asked(a), "b": Asked(b)}


@pytest.fixture
def data(models: dict[str, Asked]) -> ImageSet:
    """Labels of which most are what "a" says, so that there is something to fool."""
    raw = image_set(80)
    with torch.no_grad():
        said = models["a"].model(raw.images).argmax(1)
    return ImageSet(raw.images, torch.where(torch.arange(80) % 5 == 0, raw.labels, said), 3, "toy")
