"""How much faster a compact model is than its dense twin: timed in turn, in one run, under inference mode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.engine.compact_model import AskedBackend
from dcn_plugin.engine.compaction import compact
from dcn_plugin.engine.dense_twin import DenseTwin, dense_twin, ideal_speedup
from dcn_plugin.errors import SpecError
from dcn_plugin.surgery import defect_spec

__all__ = ["Speed", "Timing", "alternate", "inference", "measure_speed", "relative_error"]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The time of one of several calls, which were timed in turn.

    Args:
        median_ms: milliseconds of a call.
        speedup: how many times faster than the first of the calls: the median of the ratios of each round.
        quartiles: the lower and the upper quartile of these ratios.
    """

    median_ms: float
    speedup: float
    quartiles: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A compact model beside its dense twin.

    Args:
        batch_size: images a batch.
        backend: of the compact model; "dense": it runs on images.
        dense_ms: median milliseconds of a batch of the twin.
        compact_ms: the same of the compact model.
        speedup: median over rounds of the twin's time over the compact model's.
        quartiles: of these ratios.
        ideal: see :func:`dcn_plugin.engine.dense_twin.ideal_speedup`.
        packed_bytes: memory of the lists of rows.
        compact_seconds: seconds that compact() took.
        relative_error: see :func:`relative_error`, against the defective model.
        note: of the plan.
    """

    batch_size: int
    backend: str
    dense_ms: float
    compact_ms: float
    speedup: float
    quartiles: tuple[float, float]
    ideal: float
    packed_bytes: int
    compact_seconds: float
    relative_error: float
    note: str = ""

    @property
    def share_of_ideal(self) -> float:
        """How much of the ideal is reached; above 1 where the kernel for rows is faster than the dense one."""
        return self.speedup / self.ideal

    def to_json(self) -> dict[str, Any]:
        """Every figure by its name, for a record."""
        return {**asdict(self), "quartiles": list(self.quartiles), "share_of_ideal": self.share_of_ideal}


def alternate(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warm_up: int = 2,
    settle: int = 1,
    device: torch.device | None = None,
) -> dict[str, Timing]:
    """Time calls one after the other, round by round, so that a change in the machine's speed falls on all of them.

    Args:
        calls: name -> call; the others are compared to the first.
        rounds: at least 2. The order is reversed from round to round: no call always runs first.
        warm_up: calls of each before the first that counts.
        settle: calls right before each one that counts. The caches then hold what the same call left, as they do where
            batch follows batch, and not what the others left.
        device: on which the calls compute; it is synchronised. By default the CPU.

    Raises:
        SpecError: ``rounds`` is too small.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 2:
        raise SpecError("Quartiles need two rounds.", rounds, "an int >= 2")
    for call in calls.values():
        for _ in range(warm_up):
            _seconds(call, device)
    times: list[dict[str, float]] = []
    for number in range(rounds):
        order = list(calls)[:: 1 if number % 2 == 0 else -1]
        times.append({name: _settled(calls[name], settle, device) for name in order})
    first = next(iter(calls))
    timings = {}
    for name in calls:
        ratios = [seconds[first] / seconds[name] for seconds in times]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        timings[name] = Timing(
            median_ms=1000 * statistics.median(seconds[name] for seconds in times),
            speedup=statistics.median(ratios),
            quartiles=(low, high),
        )
    return timings


def _settled(call: Callable[[], object], settle: int, device: torch.device | None) -> float:
    for _ in range(settle):
        call()
    return _seconds(call, device)


def _seconds(call: Callable[[], object], device: torch.device | None) -> float:
    wait = device is not None and device.type == "cuda"
    if wait:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if wait:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def inference(model: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], None]:
    """The call to be timed: a forward pass under inference mode."""

    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run


@torch.no_grad()
def relative_error(expected: Tensor, got: Tensor) -> float:
    """The largest difference of an image's outputs over the largest of them, of the worst image.

    Args:
        expected: (N, ...).
        got: the same shape.
    """
    size = expected.flatten(1).abs().amax(1).clamp(min=torch.finfo(expected.dtype).tiny)
    return float(((got - expected).flatten(1).abs().amax(1) / size).max())


def measure_speed(
    model: nn.Module,
    *,
    batch_size: int,
    rounds: int = 10,
    backend: AskedBackend = "auto",
    seed: int = 0,
    twin: DenseTwin | None = None,
) -> Speed:
    """Compact a model, compare its outputs to the model's, and time it against its dense twin.

    Args:
        model: defective, in evaluation mode; not changed.
        batch_size: images a batch, for which the compact model is made too.
        rounds: pairs of runs, at least 2.
        backend: as in :func:`dcn_plugin.compact`.
        seed: of the images.
        twin: of this model or of one with the same weights and other masks; made when absent.

    Raises:
        SpecError: ``rounds`` or ``batch_size`` is too small.
        NotDefectiveError, CompactError, TraceError: as in :func:`dcn_plugin.compact`.
    """
    start = time.perf_counter()
    fast = compact(model, backend=backend, batch_size=batch_size)
    took = time.perf_counter() - start
    twin = dense_twin(model) if twin is None else twin
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(batch_size, *defect_spec(model).input_size, generator=draw).to(fast.device, fast.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        error = relative_error(model(images), fast(images))
    calls = {"dense": inference(twin.module, images), "compact": inference(fast, images)}
    timed = alternate(calls, rounds=rounds, device=fast.device)
    return Speed(
        batch_size=batch_size,
        # A batch for which rows do not pay runs on images.
        backend=fast.plan.backend if fast.plan.way(batch_size) == "compact" else "dense",
        dense_ms=timed["dense"].median_ms,
        compact_ms=timed["compact"].median_ms,
        speedup=timed["compact"].speedup,
        quartiles=timed["compact"].quartiles,
        ideal=ideal_speedup(twin, fast.plan, images),
        packed_bytes=fast.plan.packed_bytes,
        compact_seconds=took,
        relative_error=error,
        note=fast.plan.note,
    )
