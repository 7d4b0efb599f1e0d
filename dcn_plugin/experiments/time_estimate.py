"""What a run will take on this machine: the steps are counted, and those of the largest networks are timed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from dcn_plugin.experiments.attack_names import read_attack
from dcn_plugin.experiments.datasets import image_counts
from dcn_plugin.experiments.measurements import Measurement
from dcn_plugin.experiments.network_store import PUBLIC_STEPS, at_hand, public_jobs
from dcn_plugin.experiments.networks import ROUNDS, Job
from dcn_plugin.experiments.step_times import Kind, Passes, Span, StepTimes
from dcn_plugin.training.baselines import BASELINES
from dcn_plugin.training.distillation import answers_needed

__all__ = ["FORWARD", "Estimate", "Remaining", "estimate"]

FORWARD = 1 / 3
"""A forward pass is about a third of forward and backward."""


@dataclass(frozen=True)
class Estimate:
    """What is left to do, if nothing else runs on the machine.

    Args:
        training: of the networks that are missing.
        measuring: of the measurements that are missing; attacks that stop early, or find it hard, take less or more.
        timed: kinds of networks whose steps were timed.
        scaled: kinds of networks whose time is taken from others, by their multiply-adds.
    """

    training: Span
    measuring: Span
    timed: int = 1
    scaled: int = 0

    def __str__(self) -> str:
        both = self.training + self.measuring
        parts = f"training {_time(self.training.likely)}, measuring {_time(self.measuring.likely)}"
        kinds = f"{self.timed} {'kind' if self.timed == 1 else 'kinds'} of network timed"
        kinds += f", {self.scaled} scaled by multiply-adds" if self.scaled else ""
        return f"about {_time(both.likely)}, between {_time(both.low)} and {_time(both.high)} ({parts}; {kinds})"


def estimate(jobs: Sequence[Job], measurements: Iterable[Measurement], device: torch.device) -> Estimate:
    """Count the steps, time those of the networks that most of the work is of, and scale the others.

    It takes seconds, also on a busy machine, and what was timed is kept for the next estimate, see
    :mod:`dcn_plugin.experiments.step_times`.

    Args:
        jobs: the networks that have to be trained.
        measurements: that have to run.
        device: where they compute.
    """
    training = [passes for job in jobs for passes in _training(job)]
    measuring = [passes for measurement in measurements for passes in _measuring(measurement)]
    seconds = StepTimes(device)
    seconds.measure([*training, *measuring])
    kinds = {Kind.of(job): seconds.is_timed(job) for job, _ in (*training, *measuring)}
    timed = sum(kinds.values())
    return Estimate(seconds.total(training), seconds.total(measuring), timed, len(kinds) - timed)


class Remaining:
    """What is left of a run, from what its finished parts took.

    Where some networks are trained, the others are expected to take as much longer or shorter than they were estimated;
    likewise measurements. Nothing is timed for it.

    Args:
        jobs: the networks that have to be trained, in their order.
        measurements: that have to run after them, in their order.
        device: where they compute.
    """

    def __init__(self, jobs: Sequence[Job], measurements: Sequence[Measurement], device: torch.device) -> None:
        seconds = StepTimes(device)
        self._left = {
            "training": [seconds.total(_training(job)).likely for job in jobs],
            "measuring": [seconds.total(_measuring(measurement)).likely for measurement in measurements],
        }
        self._expected = dict.fromkeys(self._left, 0.0)
        self._taken = dict.fromkeys(self._left, 0.0)

    def finished(self, phase: Literal["training", "measuring"], seconds: float) -> None:
        """The next part of a phase is finished.

        Args:
            phase: that it is of.
            seconds: that it took.
        """
        self._expected[phase] += self._left[phase].pop(0)
        self._taken[phase] += seconds

    @property
    def seconds(self) -> float | None:
        """What is left; None: nothing is finished, so that nothing is known yet."""
        expected, taken = sum(self._expected.values()), sum(self._taken.values())
        if not expected:
            return None
        left = 0.0
        for phase, parts in self._left.items():
            known = self._expected[phase] > 0  # else the other phase has to speak for this one
            rate = self._taken[phase] / self._expected[phase] if known else taken / expected
            left += rate * sum(parts)
        return left

    def __str__(self) -> str:
        seconds = self.seconds
        return "" if seconds is None else f", about {_time(seconds)} left"


def _training(job: Job) -> Passes:
    scale = job.scale
    known, _ = image_counts(job.data, job.copy)
    images = min(scale.train_images or known, known)
    epochs = scale.training.epochs
    if job.targets:
        sizes = (
            answers_needed(at_hand(job), rounds=number, budget=job.scale.answers) for number in range(1, ROUNDS + 1)
        )
        return [(job, epochs * sum(sizes))]
    defence = BASELINES.get(job.network.defence or "standard", BASELINES["standard"])
    if defence.madry:
        epochs *= 1 + min(defence.madry["steps"], scale.max_steps or defence.madry["steps"])
    if not defence.pubdef:
        return [(job, images * epochs)]
    texts = job.network.public_attacks
    steps = sum(read_attack(text).gradients(scale) for text in texts) if texts else PUBLIC_STEPS
    return [(job, 2 * images * epochs), *((public, images * steps) for public in public_jobs(job))]


def _measuring(measurement: Measurement) -> Passes:
    scale, attacks, sources = measurement.scale, measurement.attacks, measurement.sources
    _, known = image_counts(measurement.data, measurement.jobs[0].copy)
    images = min(measurement.images or known, known)
    steps = sum(attack.gradients(scale) for attack in attacks.values())
    attacked: Passes = []
    if measurement.protocol.takes("count"):
        passes = min(images, scale.count) * steps * FORWARD
    elif sources:
        passes = images * (1 + len(attacks) * len(sources)) * FORWARD
        attacked = [
            (job, images * steps * max(1, job.network.redrawn)) for source in sources.values() for job in source
        ]
    elif attacks:
        passes = images * steps
    else:
        passes = images * (1 + (len(measurement.strengths) or 1)) * FORWARD
    return [*attacked, *((job, passes) for row in measurement.rows.values() for job in row)]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
