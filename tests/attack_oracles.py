"""What attacks are held against: exact distances, models that count their rows, equal bits at every batch size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.toys import images


class RowNet(nn.Module):
    """Three classes from element-wise products and one sum a row: the same bits at every batch size.

    Matrix products and convolutions may round differently at other batch sizes, also in float64.
    """

    def __init__(
        self, shape: tuple[int, int, int] = (1, 4, 4), *, seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64).to(dtype)
        self.weight, self.square = nn.Parameter(weights[0]), nn.Parameter(weights[1] / 2)
        self.norm = nn.BatchNorm2d(shape[0])  # never called; its mode must come back all the same

    def forward(self, x: Tensor) -> Tensor:
        centred = x - 0.5
        logits = [
            (centred * w + centred * centred * s).flatten(1).sum(1)
            for w, s in zip(self.weight, self.square, strict=True)
        ]
        return torch.stack(logits, dim=1)


class Counting(nn.Module):
    """Counts the rows it sees, and can fail or go blind at a given one."""

    def __init__(self, model: nn.Module, *, fail_at: int | None = None, nan_at: int | None = None) -> None:
        super().__init__()
        self.model, self.fail_at, self.nan_at, self.rows = model, fail_at, nan_at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        if self.fail_at is not None and self.rows > self.fail_at:
            raise RuntimeError("injected")
        logits: Tensor = self.model(x)
        return logits * float("nan") if self.nan_at is not None and self.rows > self.nan_at else logits


class Labels(nn.Module):
    """Tells its decision and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        decision: Tensor = self.model(x).argmax(dim=1)
        return decision


def right(model: nn.Module, clean: Tensor) -> Tensor:
    """Labels that the model gets right."""
    with torch.no_grad():
        return model.eval()(clean).argmax(dim=1)


def grey(count: int, *, shape: tuple[int, int, int] = (1, 4, 4), dtype: torch.dtype = torch.float64) -> Tensor:
    """Images without pixels near 0 and 1."""
    return images(count, shape=shape, dtype=dtype) / 2 + 0.25


def closest_boundary(layer: nn.Linear, clean: Tensor, labels: Tensor) -> Tensor:
    """Exact squared L2 distance of each image to the nearest adversarial image in [0, 1], for a linear model.

    For one other class the nearest image is clip(x + t * v, 0, 1) with v the difference of the two weights and
    the smallest t >= 0 that equals the two logits (KKT conditions); t is bisected.
    """
    x = clean.double().flatten(1)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    best = torch.full((len(x),), float("inf"), dtype=torch.float64)
    for other in range(len(weight)):
        v, b = weight[other] - weight[labels], bias[other] - bias[labels]
        low, high = torch.zeros(len(x), 1, dtype=torch.float64), torch.full((len(x), 1), 1e3, dtype=torch.float64)
        for _ in range(100):
            middle = (low + high) / 2
            reached = (((x + middle * v).clamp(0, 1) * v).sum(1) + b >= 0)[:, None]
            low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
        point = (x + high * v).clamp(0, 1)
        reached = (point * v).sum(1) + b >= -1e-9
        distance = (point - x).square().sum(1)
        best = torch.where(reached & (other != labels), torch.minimum(best, distance), best)
    return best
