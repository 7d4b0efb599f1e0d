"""What an attack or a transfer matrix costs over the model calls it makes, and nothing else.

A first run notes every call: how many images, and whether their gradient was taken. The bare calls are then made
again with images of the same number, in turn with runs of the whole.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import ImageSet
from dcn_plugin.evaluate import transfer

__all__ = ["cost_of_attack", "cost_of_transfer", "in_turn"]


@dataclass(frozen=True)
class _Call:
    model: nn.Module
    count: int
    gradient: bool


class _Noted(nn.Module):
    def __init__(self, model: nn.Module, calls: list[_Call]) -> None:
        super().__init__()
        self.model, self._calls = model, calls

    def forward(self, images: Tensor) -> Tensor:
        self._calls.append(_Call(self.model, len(images), images.requires_grad and torch.is_grad_enabled()))
        logits: Tensor = self.model(images)
        return logits


def _repeat(calls: Sequence[_Call], images: Tensor, labels: Tensor) -> None:
    """The calls alone; weights are frozen, as the attacks freeze them."""
    for call in calls:
        batch = images[: call.count]
        if call.gradient:
            leaf = batch.clone().requires_grad_()
            loss = F.cross_entropy(call.model(leaf), labels[: call.count], reduction="sum")
            torch.autograd.grad(loss, leaf)
        else:
            with torch.no_grad():
                call.model(batch)


def in_turn(first: Callable[[], object], second: Callable[[], object], pairs: int) -> dict[str, Any]:
    """Seconds of both, timed one after the other, and the median of the ratios first / second."""
    times = []
    for i in range(pairs):
        order = (0, 1) if i % 2 == 0 else (1, 0)  # no side always runs first
        pair = [0.0, 0.0]
        for side in order:
            start = time.perf_counter()
            (first, second)[side]()
            pair[side] = time.perf_counter() - start
        times.append(pair)
    ratios = [a / b for a, b in times]
    return {"seconds": times, "ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}


def _against_calls(
    whole: Callable[[], object], calls: Sequence[_Call], models: Sequence[nn.Module], data: ImageSet, pairs: int
) -> dict[str, Any]:
    most = max(call.count for call in calls)
    images = data.images.repeat(-(-most // len(data)), 1, 1, 1)[:most]
    labels = data.labels.repeat(-(-most // len(data)))[:most]
    for model in models:
        model.eval().requires_grad_(False)
    found = in_turn(whole, lambda: _repeat(calls, images, labels), pairs)
    return {**found, "calls": len(calls), "images_asked": sum(call.count for call in calls)}


def cost_of_attack(attack: Attack, model: nn.Module, data: ImageSet, *, pairs: int) -> dict[str, Any]:
    """Time of an attack on a data set over its bare forward passes."""
    calls: list[_Call] = []
    attack(_Noted(model, calls), data.images, data.labels)
    return _against_calls(lambda: attack(model, data.images, data.labels), calls, [model], data, pairs)


def cost_of_transfer(
    sources: Mapping[str, nn.Module],
    targets: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    data: ImageSet,
    *,
    seed: int,
    pairs: int,
) -> dict[str, Any]:
    """Time of a transfer matrix over the model calls it makes."""
    calls: list[_Call] = []
    noted = [{name: _Noted(model, calls) for name, model in models.items()} for models in (sources, targets)]
    list(transfer(*noted, attacks, data, training_seed=seed))
    models = [*sources.values(), *targets.values()]
    return _against_calls(
        lambda: list(transfer(sources, targets, attacks, data, training_seed=seed)), calls, models, data, pairs
    )
