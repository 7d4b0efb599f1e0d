"""What a run will take on this machine: a few steps are timed, and the rest is counted."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_plugin.experiments.attack_names import read_attack
from dcn_plugin.experiments.datasets import DATA
from dcn_plugin.experiments.measurements import Measurement
from dcn_plugin.experiments.network_store import PUBLIC_STEPS, at_hand, build, public_jobs, training_of
from dcn_plugin.experiments.networks import ROUNDS, Job
from dcn_plugin.support.model_state import device_of
from dcn_plugin.support.onednn import check_channels_last
from dcn_plugin.training import TrainConfig
from dcn_plugin.training.baselines import BASELINES
from dcn_plugin.training.distillation import answers_needed
from dcn_plugin.training.precision import autocast

__all__ = ["FORWARD", "Estimate", "estimate", "seconds_per_image"]

FORWARD = 1 / 3
"""A forward pass is about a third of forward and backward."""


@dataclass(frozen=True)
class Estimate:
    """What is left to do, in seconds.

    Args:
        training: of the networks that are missing.
        measuring: of the measurements that are missing; attacks that stop early, or find it hard, take less or more.
    """

    training: float
    measuring: float

    def __str__(self) -> str:
        both = _time(self.training + self.measuring)
        return f"about {both} (training {_time(self.training)}, measuring {_time(self.measuring)})"


def estimate(jobs: Sequence[Job], measurements: Iterable[Measurement], device: torch.device) -> Estimate:
    """Time a few training steps of every kind of network, and count the steps.

    Args:
        jobs: the networks that have to be trained.
        measurements: that have to run.
        device: where they compute.
    """
    seconds = _StepTimes(device)
    training = sum(_training(job, seconds) for job in jobs)
    measuring = sum(_measuring(measurement, seconds) for measurement in measurements)
    return Estimate(training, measuring)


class _StepTimes:
    """Seconds of forward and backward of one image, measured once for every kind of network."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times: dict[tuple[str, str, int, str], float] = {}

    def __getitem__(self, job: Job) -> float:
        kind = (job.network.net, job.network.variant.kind, job.scale.width, job.data)
        if kind not in self._times:
            self._times[kind] = _time_step(job, self._device)
        return self._times[kind]


def _time_step(job: Job, device: torch.device) -> float:
    net = build(job).to(device)
    config = training_of(job, net, device)
    # A whole batch: with fewer images the fixed cost of a step counts too much.
    count = min(config.batch_size, 128 if job.data != "imagenet" else 4)
    images = torch.rand(count, *DATA[job.data].shape, generator=torch.Generator().manual_seed(0))
    return seconds_per_image(net, images, config)


def seconds_per_image(net: nn.Module, images: Tensor, config: TrainConfig) -> float:
    """Time a few training steps without the optimiser's.

    Args:
        net: on the device where it is to train; left in training mode and in the memory format of ``config``.
        images: (N, C, H, W), one batch.
        config: says the memory format and the precision.

    Returns:
        Seconds of forward and backward of one image.
    """
    device = device_of(net)
    if config.channels_last:
        check_channels_last(net, device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    net.train().to(memory_format=layout)
    images = images.to(device, memory_format=layout)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    elapsed = []
    for _ in range(4):
        start = time.perf_counter()
        with autocast(config.amp, device):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed.append(time.perf_counter() - start)
        net.zero_grad()
    # The first one allocates; of the others the one that other programs disturbed least.
    return min(elapsed[1:]) / len(images)


def _training(job: Job, seconds: _StepTimes) -> float:
    scale = job.scale
    images = min(scale.train_images or DATA[job.data].train_images, DATA[job.data].train_images)
    passes = float(scale.training.epochs)
    if job.targets:
        sizes = (
            answers_needed(at_hand(job), rounds=number, budget=job.scale.answers) for number in range(1, ROUNDS + 1)
        )
        return passes * sum(sizes) * seconds[job]
    defence = BASELINES.get(job.network.defence or "standard", BASELINES["standard"])
    if defence.madry:
        passes *= 1 + min(defence.madry["steps"], scale.max_steps or defence.madry["steps"])
    attacked = 0.0
    if defence.pubdef:
        passes *= 2
        texts = job.network.public_attacks
        steps = sum(read_attack(text).gradients(scale) for text in texts) if texts else PUBLIC_STEPS
        attacked = steps * sum(seconds[public] for public in public_jobs(job))
    return images * (passes * seconds[job] + attacked)


def _measuring(measurement: Measurement, seconds: _StepTimes) -> float:
    scale, attacks, sources = measurement.scale, measurement.attacks, measurement.sources
    test_images = DATA[measurement.data].test_images
    images = min(measurement.images or test_images, test_images)
    targets = sum(seconds[job] for jobs in measurement.rows.values() for job in jobs)
    passes = sum(attack.gradients(scale) for attack in attacks.values())
    if measurement.protocol.takes("count"):
        return min(images, scale.count) * passes * FORWARD * targets
    if sources:
        attacked = sum(max(1, job.network.redrawn) * seconds[job] for jobs in sources.values() for job in jobs)
        forward = (1 + len(attacks) * len(sources)) * FORWARD * targets
        return images * (passes * attacked + forward)
    if attacks:
        return images * passes * targets
    changes = len(measurement.strengths) or 1
    return images * (1 + changes) * FORWARD * targets


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
