"""Defective models as users make them, and how far a compact one is from its model."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, fx, nn

import dcn_plugin as dcn
from dcn_plugin.engine.clock import Compared
from dcn_plugin.engine.measured_costs import Measured
from tests.models.timm_checks import seeded

LIMIT = 1e-4
"""Of :func:`error`, in float32."""


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval mode, with norms moved off 0 and 1, and weights that let the image through to the logits."""
    generator = torch.Generator().manual_seed(seed)

    def near(tensor: Tensor | None, centre: float) -> None:
        if tensor is not None:
            tensor.copy_(centre + 0.4 * torch.rand(tensor.shape, generator=generator) - 0.2)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                spread = (2 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(spread * torch.randn(module.weight.shape, generator=generator))
            if isinstance(module, nn.BatchNorm2d):
                near(module.weight, 1)
                near(module.bias, 0)
                near(module.running_mean, 0)
                near(module.running_var, 1)
    return model.eval()


def created(name: str, **options: object) -> nn.Module:
    """A timm model with fixed random weights."""
    with seeded():
        return randomised(timm.create_model(name, **options))


class Plain(nn.Module):
    """Stem, residual block with a projection, pool, convolution without norm, at 12x12: all that rows can be."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        )
        self.side = nn.Sequential(nn.Conv2d(6, 8, 1, stride=2), nn.BatchNorm2d(8))
        self.last = nn.Conv2d(8, 9, 3, padding=1)
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = nn.functional.max_pool2d(torch.relu(self.body(x) + self.side(x)), 2)
        logits: Tensor = self.head(torch.relu(self.last(x)).mean((2, 3)))
        return logits


SIZE = (3, 12, 12)


def small(dtype: torch.dtype = torch.float32, **options: object) -> nn.Module:
    """A defective :class:`Plain`."""
    with seeded():
        plain = randomised(Plain())
    chosen = {"p": 0.3, "blocks": ["*"], "input_size": SIZE, **options}
    return dcn.defectify(plain, **chosen).eval().to(dtype)  # type: ignore[arg-type]


def images(count: int = 3, size: tuple[int, ...] = SIZE, *, seed: int = 0) -> Tensor:
    """Images in [0, 1]."""
    return torch.rand(count, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def error(found: nn.Module, expected: nn.Module, given: Tensor) -> float:
    """The largest relative error of the logits."""
    right = expected(given)
    return float((found(given) - right).abs().max() / right.abs().max())


def assert_equal_and_defective(compact: dcn.CompactModel, model: nn.Module, given: Tensor) -> None:
    """The compact model equals the model, and not what the model is without defects."""
    assert error(compact, model, given) < LIMIT
    assert error(dcn.undefectify(model), model, given) > 10 * LIMIT


def rows(compact: dcn.CompactModel) -> list[str]:
    """Names of the layers that run on rows."""
    return [layer.name for layer in compact.plan.layers if layer.backend != "dense"]


def assert_close(found: Tensor, expected: Tensor, limit: float = LIMIT) -> None:
    """Relative to the largest value."""
    largest = expected.abs().max()
    assert largest > 0
    assert (found - expected).abs().max() <= limit * largest


def input_gradient(model: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
    given = given.clone().requires_grad_()
    logits = model(given)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)
    (found,) = torch.autograd.grad((logits * weights).sum(), given)
    return found


def through_pickle(model: dcn.CompactModel) -> dcn.CompactModel:
    return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]


def choice_wins(plain: Any, other: Any, *_: Any, **__: Any) -> Compared:
    """In place of :func:`dcn_plugin.engine.ladder.raced`: all take half of the model's time, and images never less."""
    is_model = isinstance(plain, nn.Module) and not isinstance(plain, fx.GraphModule)
    return Compared(2.0, 2.0, 1.0) if is_model else Compared(0.5, 1.0, 2.0)


def rows_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all that runs on rows took no time, conversions from and to images included."""
    monkeypatch.setattr(Measured, "_on_rows", lambda *_: 1e-6)
    monkeypatch.setattr(Measured, "conversion", lambda *_: (0.0, 0.0))
