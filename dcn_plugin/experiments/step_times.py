"""What training steps take on this machine: a few kinds are timed, the others are scaled by their multiply-adds.

A step is timed on one thread, by the processor time of that thread. Beside another program that computes on all cores
this number changes by a few percent; the time of the step itself grows by as much as the other program takes, and with
several threads by far more, because threads that wait for each other spend processor time on waiting. What is timed is
kept for the next process, see :mod:`dcn_plugin.support.cache_folder` (``DCN_STEPS_CACHE``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcn_plugin.experiments.datasets import DATA
from dcn_plugin.experiments.finished_seeds import fixed_threads
from dcn_plugin.experiments.network_store import build, training_of
from dcn_plugin.experiments.networks import Job, Network
from dcn_plugin.support.cache_folder import CacheFolder, Key
from dcn_plugin.support.environment import hardware, package_versions
from dcn_plugin.support.model_state import device_of
from dcn_plugin.support.onednn import check_channels_last
from dcn_plugin.training import TrainConfig
from dcn_plugin.training.precision import autocast

__all__ = ["Passes", "Span", "StepTimes", "Timed", "multiply_adds", "on_threads", "time_step"]

KEPT = CacheFolder("steps")
BUDGET = 8.0
"""Processor seconds that an estimate spends on timing."""
WORK = 2e9
"""A step that is timed has about so many multiply-adds in its forward pass: a second on one core."""
IMAGES = (2, 32)
"""Fewest and most images of such a step."""
WHOLE_BATCH = 0.9
"""What an image takes at least among the 128 of a training step, over what it takes among so few."""
SERIAL = (0.0, 0.15, 1 / 3)
"""Share of a step that further threads do not shorten: least, likely and most.

On two threads a step of ResNet-18 and VGG-19 is 1.77 times as fast as on one, a share of 0.13, and one of DenseNet-121,
whose layers are many and small, 1.5 times, a third (width 16, batch 128, AVX2)."""
UNLIKE = 2.0
"""How far a multiply-add of a network may cost more or less than one of another network, where a single one was timed.
Between the six networks of the paper it is 1.9 (the same)."""


@dataclass(frozen=True)
class Span:
    """A time in seconds, and between which bounds it is expected."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def __mul__(self, factor: float) -> Span:
        return Span(self.low * factor, self.likely * factor, self.high * factor)


NOTHING = Span(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Kind:
    """What the time of a step depends on.

    Args:
        net: the network, see :class:`dcn_plugin.experiments.networks.Network`.
        variant: kind of its masks: they cost little, but DC (with its p) and x2 have other widths.
        width: of its first stage.
        data: its data set, which says the size of the images.
        amp, channels_last: of its training.
    """

    net: str
    variant: str
    width: int
    data: str
    amp: bool
    channels_last: bool

    @classmethod
    def of(cls, job: Job) -> Kind:
        """The kind of a network."""
        network, training = job.network, job.scale.training
        variant: str = network.variant.kind
        if variant == "channel":
            variant += f" {network.variant.bottom} {network.variant.top}"
        return cls(network.net, variant, job.scale.width, job.data, training.amp, training.channels_last)


@dataclass(frozen=True)
class Timed:
    """Seconds of forward and backward of one image on one thread: of the fastest step, and of the slowest."""

    fastest: float
    slowest: float

    @property
    def span(self) -> Span:
        """What an image takes in a whole batch, on one thread."""
        return Span(WHOLE_BATCH * self.fastest, self.fastest, self.slowest)


Passes = Sequence[tuple[Job, float]]
"""(network, how many images go forward and backward through it)."""


class StepTimes:
    """Times of all kinds of networks, timed or scaled.

    Args:
        device: where they compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._work, self._timed = _read(device)

    def measure(self, passes: Passes, *, budget: float = BUDGET) -> None:
        """Time the kinds that most of the work is of, until the budget is spent; at least one, if none is known.

        Args:
            passes: all that is to be estimated.
            budget: processor seconds.
        """
        known = len(self._work), len(self._timed)
        jobs = {Kind.of(job): job for job, _ in passes}
        shares = dict.fromkeys(jobs, 0.0)
        for job, count in passes:
            shares[Kind.of(job)] += count * self.work(job)
        start = time.process_time()
        for kind in sorted(jobs, key=lambda kind: -shares[kind]):
            if kind not in self._timed and (not self._timed or time.process_time() - start < budget):
                self._timed[kind] = _time(jobs[kind], self.work(jobs[kind]), self._device)
        if known != (len(self._work), len(self._timed)):
            _write(self._device, self._work, self._timed)

    def total(self, passes: Passes) -> Span:
        """Seconds of all passes."""
        return sum((self[job] * count for job, count in passes), NOTHING)

    def is_timed(self, job: Job) -> bool:
        """Whether its kind was timed, now or earlier; else it is scaled from others."""
        return Kind.of(job) in self._timed

    def __getitem__(self, job: Job) -> Span:
        """Seconds of forward and backward of one image, with as many threads as PyTorch has now.

        Where nothing at all is timed they are multiply-adds: only the ratio of two such spans means something.
        """
        timed = self._timed.get(Kind.of(job))
        if timed is not None:
            return on_threads(timed.span, self._device)
        rates = self._rates(Kind.of(job)) or [1.0]
        likely = statistics.geometric_mean(rates)
        spread = max(likely / min(rates), max(rates) / likely) if len(rates) > 1 else UNLIKE
        return on_threads(Span(likely / spread, likely, likely * spread) * self.work(job), self._device)

    def work(self, job: Job) -> float:
        """Multiply-adds of the forward pass of one image."""
        kind = Kind.of(job)
        if kind not in self._work:
            self._work[kind] = multiply_adds(_probe(job), (1, *DATA[job.data].shape))
        return self._work[kind]

    def _rates(self, kind: Kind) -> list[float]:
        """Seconds a multiply-add of the timed kinds that are most like this one."""
        for fields in (("net", "data", "amp", "channels_last"), ("data", "amp", "channels_last"), ()):
            alike = [
                timed.fastest / self._work[other]
                for other, timed in self._timed.items()
                if all(getattr(other, field) == getattr(kind, field) for field in fields)
            ]
            if alike:
                return alike
        return []


def on_threads(alone: Span, device: torch.device) -> Span:
    """Seconds of a step on all threads of PyTorch, from those on one: Amdahl's law."""
    if device.type != "cpu":
        return alone
    threads = torch.get_num_threads()
    low, likely, high = (serial + (1 - serial) / threads for serial in SERIAL)
    return Span(alone.low * low, alone.likely * likely, alone.high * high)


def time_step(net: nn.Module, images: Tensor, config: TrainConfig) -> Timed:
    """Time a few training steps without the optimiser's.

    Args:
        net: on the device where it is to train; left in training mode and in the memory format of ``config``.
        images: (N, C, H, W), a batch.
        config: says the memory format and the precision.

    Returns:
        Of forward and backward of one image: on a CPU the processor time of one thread, elsewhere the time that passed.
    """
    device = device_of(net)
    if config.channels_last:
        check_channels_last(net, device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    net.train().to(memory_format=layout)
    images = images.to(device, memory_format=layout)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    elapsed = []
    with fixed_threads(1) if device.type == "cpu" else contextlib.nullcontext():
        for _ in range(3):
            start = clock()
            with autocast(config.amp, device):
                loss = F.cross_entropy(net(images), labels)
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elapsed.append((clock() - start) / len(images))
            net.zero_grad()
    return Timed(min(elapsed[1:]), max(elapsed[1:]))  # the first one allocates


def multiply_adds(net: nn.Module, shape: tuple[int, ...]) -> float:
    """Of the convolutions and products of matrices in a forward pass.

    Args:
        net: on a CPU; left in evaluation mode.
        shape: of the images, (N, C, H, W).
    """
    with fixed_threads(1), FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(shape))
    return counter.get_total_flops() / 2  # type: ignore[no-any-return]


def _probe(job: Job) -> nn.Module:
    """The network without its defence, and under one set of masks."""
    network = job.network
    return build(dataclasses.replace(job, network=Network(network.net, network.variant, defects=network.defects)))


def _time(job: Job, work: float, device: torch.device) -> Timed:
    """Time the steps of one kind of network, on so many images that it takes about a second."""
    net, (fewest, most) = _probe(job).to(device), IMAGES
    count = max(fewest, min(most, int(WORK / max(1.0, work))))
    images = torch.rand(count, *DATA[job.data].shape, generator=torch.Generator().manual_seed(0))
    return time_step(net, images, training_of(job, net, device))


def _read(device: torch.device) -> tuple[dict[Kind, float], dict[Kind, Timed]]:
    """Multiply-adds and times of earlier estimates on this machine."""
    work: dict[Kind, float] = {}
    timed: dict[Kind, Timed] = {}
    with contextlib.suppress(TypeError, ValueError, KeyError):  # a file of another form is as good as none
        for entry in (KEPT.read(_key(device)) or {})["kinds"]:
            kind, numbers = Kind(**entry["kind"]), [entry["multiply_adds"], *(entry["seconds"] or ())]
            if not all(math.isfinite(number) and number > 0 for number in numbers):
                continue
            work[kind] = numbers[0]
            if entry["seconds"]:
                timed[kind] = Timed(*numbers[1:])
    return work, timed


def _write(device: torch.device, work: dict[Kind, float], timed: dict[Kind, Timed]) -> None:
    """Keep what is known, beside what other processes have kept meanwhile."""
    earlier_work, earlier_timed = _read(device)
    work, timed = earlier_work | work, earlier_timed | timed
    kinds = [
        {
            "kind": dataclasses.asdict(kind),
            "multiply_adds": number,
            "seconds": dataclasses.astuple(timed[kind]) if kind in timed else None,
        }
        for kind, number in work.items()
    ]
    KEPT.write(_key(device), {"kinds": kinds})


def _key(device: torch.device) -> Key:
    machine = hardware(device)
    if device.type == "cpu":
        del machine["threads"]  # one is timed
    return {"what": "training steps", "hardware": machine, "versions": package_versions()}
