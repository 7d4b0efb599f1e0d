"""Which way batches of each size run: measured on the whole model at some sizes, and safe between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from dcn_plugin.engine.clock import LEAST_ROUNDS, MOST_ROUNDS, Compared, compared, steady
from dcn_plugin.engine.plan import Way

__all__ = ["Rung", "climb", "raced", "rungs", "ways_of"]

Run = Callable[[Tensor], object]


class Rung(NamedTuple):
    """What was measured at one batch size.

    Args:
        batch_size: images a batch.
        allowed: ways that are not slower than the model as it is, the fastest first; "model" is always the last.
        model_ms: milliseconds of the model as it is; 0: nothing was raced against it.
        best_ms: the same of the first way that is allowed.
        one_thread: whether these are milliseconds of one thread's CPU; see :class:`~dcn_plugin.engine.clock.Compared`.
    """

    batch_size: int
    allowed: tuple[Way, ...]
    model_ms: float = 0.0
    best_ms: float = 0.0
    one_thread: bool = False


def rungs(batch_size: int) -> list[int]:
    """Batch sizes that are measured in any case, in order: powers of two, and the largest."""
    return sorted({2**at for at in range(batch_size.bit_length())} | {batch_size})


def raced(plain: Run, other: Run, images: Tensor, *, most: int = MOST_ROUNDS) -> Compared:
    """Compare two ways of running these images; see :func:`dcn_plugin.engine.clock.compared`."""
    with torch.inference_mode():
        return compared(lambda: plain(images), lambda: other(images), images.device, most=most)


def climb(
    ways: Mapping[Way, Run],
    size: tuple[int, int, int],
    batch_size: int,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> list[Rung]:
    """Race the ways at batch sizes from ``batch_size`` down; a way that lost twice in a row is not asked again.

    Between two of them, the smaller plus one is measured too, unless it follows that nothing is lost there:
    a batch takes no longer than a larger one, and the model no less than for a smaller one.

    Args:
        ways: what runs a batch; "model" is the model as it is.
        size: (C, H, W) of the images.
        batch_size: the largest.
        device: that they compute on.
        dtype: of the images.

    Returns:
        In order of the batch size.
    """
    lost: dict[Way, int] = dict.fromkeys(ways, 0)

    def measured(count: int) -> Rung:
        contenders: list[Way] = [way for way in ("images", "compact") if way in ways and lost[way] < 2]
        images = torch.rand(count, *size, device=device, dtype=dtype)
        rung = _rung({way: ways[way] for way in ("model", *contenders)}, images)
        for way in contenders:
            lost[way] = 0 if way in rung.allowed else lost[way] + 1
        return rung

    ladder: list[Rung] = []
    for count in reversed(rungs(batch_size)):
        rung = measured(count)
        if ladder and count + 1 < ladder[-1].batch_size and not _follows(rung, ladder[-1]):
            ladder.append(measured(count + 1))
        ladder.append(rung)
    return ladder[::-1]


def _follows(smaller: Rung, larger: Rung) -> bool:
    """Whether the way that is fastest for the larger batch is no slower than the model for any size between the two."""
    fastest = larger.allowed[0]
    if fastest == "model":
        return True
    comparable = smaller.one_thread == larger.one_thread
    return fastest in smaller.allowed and comparable and larger.best_ms <= smaller.model_ms


def _rung(ways: Mapping[Way, Run], images: Tensor) -> Rung:
    """Each way takes the place of the one before it if it is not slower on the whole model."""
    allowed: list[Way] = ["model"]
    if not _takes(ways["model"], images):
        return Rung(len(images), ("model",), 0.0, 0.0)
    model_ms = best_ms = 0.0
    one_thread = False
    for way in [way for way in ways if way != "model"]:
        # Of two ways that are faster than the model either will do: few rounds tell.
        most = MOST_ROUNDS if allowed[0] == "model" else LEAST_ROUNDS
        run = raced(ways[allowed[0]], ways[way], images, most=most)
        if not model_ms:
            model_ms = best_ms = run.plain_ms
            one_thread = run.one_thread
        if run.gain >= 1:
            allowed.insert(0, way)
            best_ms *= run.other_ms / run.plain_ms
    return Rung(len(images), tuple(allowed), model_ms, best_ms, one_thread)


def _takes(model: Run, images: Tensor) -> bool:
    """Whether the model takes this many images: one that normalises by its batch may refuse a single one."""
    try:
        with torch.inference_mode(), steady(images.device):
            model(images)
    except (RuntimeError, ValueError):
        return False
    return True


def ways_of(ladder: list[Rung]) -> tuple[tuple[int, Way], ...]:
    """From which batch size on what runs: between two rungs only what is allowed on both.

    Args:
        ladder: in order of the batch size, from 1 on.

    Returns:
        (first batch size, way), in order; neighbours differ.
    """
    starts: list[tuple[int, Way]] = []
    for at, (count, allowed, *_) in enumerate(ladder):
        starts.append((count, allowed[0]))
        after = ladder[at + 1] if at + 1 < len(ladder) else None
        if after is not None and after.batch_size > count + 1:
            starts.append((count + 1, next(way for way in after.allowed if way in allowed)))
    return tuple(start for at, start in enumerate(starts) if not at or start[1] != starts[at - 1][1])
