"""A run that a test kills again and again."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import PGD, HopSkipJump
from dcn_plugin.evaluate import Result, RunDirectory, gaussian, minimal_distance, tapm, transfer, whitebox
from tests.toys import image_set, linear_model


class Slow(nn.Module):
    """Takes a moment, so that a kill finds it at work."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.002)
        logits: Tensor = self.model(x)
        return logits


def main(folder: str) -> None:
    torch.set_num_threads(1)
    models = {name: Slow(linear_model(16, seed=seed)) for seed, name in enumerate("abc")}
    attacks = [PGD(0.1, steps=2), PGD(0.2, steps=2)]
    data, store = image_set(40), RunDirectory(folder)
    common = {"seed": 0, "batch_size": 16, "store": store}
    results: list[Result] = []
    for protocol in (
        transfer(models, models, attacks, data, **common),  # type: ignore[arg-type]
        tapm(models, models, attacks, data, **common),  # type: ignore[arg-type]
        whitebox(models, attacks, data, **common),  # type: ignore[arg-type]
        gaussian(models, data, [0.1, 0.2], **common),  # type: ignore[arg-type]
        minimal_distance(models, HopSkipJump(max_queries=120), data, count=10, **common),  # type: ignore[arg-type]
    ):
        results += protocol
    store.finish({"name": "resume"}, results)
