"""A training run that a test kills again and again."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from dcn_plugin.surgery import defectify
from dcn_plugin.training import Batch, TrainConfig, TrainResult, isolated_rng, train
from tests.toys import image_set

DATA = image_set(40, shape=(1, 6, 6))
VAL = image_set(25, seed=7, shape=(1, 6, 6))
# Everything that carries a state: momentum, an average, order and augmentation, dropout, and the masks.
CONFIG = TrainConfig(epochs=5, batch_size=8, lr=0.05, shift=1, flip=True, ema_decay=0.9, seed=3)
# The same with masks that change from step to step, also in the middle of an epoch.
GRADUAL = dataclasses.replace(CONFIG, gradual="cosine", gradual_share=0.7)


def make() -> nn.Module:
    """Convolution, norm with a mask, dropout."""
    with isolated_rng(0):
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)
        )
    return defectify(net, ["0"], p=0.5, input_size=(1, 6, 6))


class Slow:
    """Takes a moment and adds noise, so that a kill finds the run at work and the hook's own stream counts too."""

    def __repr__(self) -> str:
        return "Slow()"

    def __call__(self, model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        time.sleep(0.004)
        noise: Tensor = torch.rand(batch.images.shape, generator=generator) / 10
        return batch._replace(images=(batch.images + noise).clamp(0, 1))


def run(folder: Path | None, hook: Slow | None = None, config: TrainConfig = CONFIG) -> tuple[TrainResult, nn.Module]:
    """Train, or go on training, in ``folder``."""
    model = make()
    return train(model, DATA, config, val=VAL, out=folder, step_images=hook or Slow()), model


def main(folder: str, config: TrainConfig = CONFIG) -> None:
    """The entry of a process."""
    torch.set_num_threads(1)
    run(Path(folder), config=config)
