"""One training loop in plain PyTorch."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from dcn_plugin.data import ImageSet, random_shift
from dcn_plugin.errors import ModelOutputError, SpecError

__all__ = ["TrainConfig", "TrainResult", "isolated_rng", "train"]


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained: SGD under a one-cycle schedule.

    Args:
        epochs: passes over the data, >= 1.
        batch_size: images a step, >= 2 (batch norm needs two). A last batch that is smaller is left out.
        lr: highest learning rate; the schedule rises from lr / 25 and falls to almost 0, along cosines.
        warmup: share of the steps on the rise, in (0, 1).
        momentum: of SGD, in [0, 1).
        nesterov: look ahead; needs momentum > 0.
        weight_decay: on every parameter, as in the paper.
        label_smoothing: as in torch's cross-entropy; 1/9 gives the paper's 0.9 for the true one of 10 classes.
        shift: images are shifted by up to so many pixels at random.
        seed: of the order, the shifts and whatever the model itself draws.

    Raises:
        SpecError: a value is out of range.
    """

    epochs: int = 12
    batch_size: int = 64
    lr: float = 0.1
    warmup: float = 0.3
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    shift: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "epochs": (self.epochs >= 1, "an int >= 1"),
            "batch_size": (self.batch_size >= 2, "an int >= 2"),
            "lr": (0 < self.lr < math.inf, "a number > 0"),
            "warmup": (0 < self.warmup < 1, "a number in (0, 1)"),
            "momentum": (0 <= self.momentum < 1, "a number in [0, 1)"),
            "nesterov": (not self.nesterov or self.momentum > 0, "False where momentum is 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a number >= 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "a number in [0, 1)"),
            "shift": (self.shift >= 0, "an int >= 0"),
            "seed": (0 <= self.seed < 2**63, "an int in [0, 2**63)"),
        }
        for name, (fine, allowed) in rules.items():
            if not fine:
                raise SpecError(f"The training option {name} is not usable.", getattr(self, name), allowed)


@dataclass(frozen=True)
class TrainResult:
    """What came of a training run; the weights are in the model.

    Args:
        losses: mean training loss of each epoch.
        steps: number of optimiser steps.
        seconds: wall time.
    """

    losses: tuple[float, ...]
    steps: int
    seconds: float


@contextlib.contextmanager
def isolated_rng(seed: int, *, device: torch.device | None = None) -> Iterator[None]:
    """Seed PyTorch's global generators inside, and give them back as they were.

    For what draws from them and takes no generator: initialisation, dropout. Not for several threads at once.

    Args:
        seed: 0 .. 2**63 - 1.
        device: a CUDA device whose generator is isolated too; without it CUDA is left alone.
    """
    gpu = device if device is not None and device.type == "cuda" else None
    cpu_state = torch.get_rng_state()
    gpu_state = None if gpu is None else torch.cuda.get_rng_state(gpu)
    try:
        # Not torch.manual_seed: that one also reseeds every GPU.
        torch.default_generator.manual_seed(seed)
        if gpu is not None:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if gpu is not None and gpu_state is not None:
            torch.cuda.set_rng_state(gpu_state, gpu)


def train(
    model: nn.Module, data: ImageSet, config: TrainConfig | None = None, *, progress: bool = False, name: str = ""
) -> TrainResult:
    """Train a model in place.

    Args:
        model: images in [0, 1] -> logits, on any one device. Its training flags are restored afterwards.
        data: the training images.
        config: see :class:`TrainConfig`; its defaults when absent.
        progress: show a progress bar on stderr.
        name: shown beside the bar.

    Returns:
        The losses and the time. Same model, data, config and number of threads: same weights, bit for bit, on a CPU.

    Raises:
        SpecError: fewer images than one batch of two.
        ModelOutputError: the loss stopped being a number.
    """
    from tqdm import tqdm  # ships with huggingface_hub, which timm needs

    config = config or TrainConfig()
    if len(data) < 2:
        raise SpecError("There is too little to train on.", len(data), "at least two images")
    start = time.perf_counter()
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(config.seed)
    steps_per_epoch = max(1, len(data) // config.batch_size)
    steps = steps_per_epoch * config.epochs
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )
    flags = [(module, module.training) for module in model.modules()]
    losses: list[float] = []
    step = 0
    bar = tqdm(total=steps, desc=name, unit="step", disable=not progress, leave=False, dynamic_ncols=True)
    try:
        with bar, isolated_rng(config.seed, device=device):
            model.train()
            for _ in range(config.epochs):
                total = torch.zeros((), device=device)
                for images, labels in data.batches(config.batch_size, generator=generator, drop_last=True):
                    images = random_shift(images, config.shift, generator=generator).to(device)
                    for group in optimizer.param_groups:
                        group["lr"] = config.lr * _one_cycle(step / max(1, steps - 1), config.warmup)
                    logits = model(images)
                    loss = F.cross_entropy(logits, labels.to(device), label_smoothing=config.label_smoothing)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    total += loss.detach()
                    step += 1
                    bar.update()
                losses.append(float(total) / steps_per_epoch)
                if not math.isfinite(losses[-1]):
                    raise ModelOutputError(
                        f"The training loss is no number any more after epoch {len(losses)}.",
                        losses[-1],
                        "a finite loss",
                        "lower lr, or check the images",
                    )
    finally:
        optimizer.zero_grad()
        for module, training in flags:
            module.training = training
    return TrainResult(tuple(losses), steps, time.perf_counter() - start)


def _one_cycle(done: float, warmup: float) -> float:
    """Share of the highest learning rate after a share ``done`` of all steps (Smith and Topin 2018, cosine form)."""
    first, last = 1 / 25, 1 / 250_000
    low, high, part = (first, 1.0, done / warmup) if done < warmup else (1.0, last, (done - warmup) / (1 - warmup))
    return low + (high - low) * (1 - math.cos(math.pi * part)) / 2
