"""The learning rate at every step."""

from __future__ import annotations

import math

from dcn_plugin.checkpoint.train_config import TrainConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of one optimiser step.

    Args:
        config: its schedule.
        step: from 0, over the whole run.
        steps_per_epoch: >= 1.
    """
    if config.schedule == "steps":
        epoch = step // steps_per_epoch
        return config.lr * config.gamma ** sum(stone <= epoch for stone in config.milestones)
    steps = config.epochs * steps_per_epoch
    return config.lr * _one_cycle(step / max(1, steps - 1), config.warmup)


def _one_cycle(done: float, warmup: float) -> float:
    """Share of the highest learning rate after a share ``done`` of all steps (Smith and Topin 2018, cosine form)."""
    first, last = 1 / 25, 1 / 250_000
    low, high, part = (first, 1.0, done / warmup) if done < warmup else (1.0, last, (done - warmup) / (1 - warmup))
    return low + (high - low) * (1 - math.cos(math.pi * part)) / 2
