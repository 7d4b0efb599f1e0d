"""Times calls so that other programs on the machine do not decide what is faster."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

__all__ = [
    "CLEAR",
    "LEAST_ROUNDS",
    "MOST_ROUNDS",
    "Compared",
    "alone",
    "compared",
    "is_quiet",
    "now",
    "steady",
    "sure_gain",
    "timed",
]

LEAST_ROUNDS, MOST_ROUNDS = 3, 7
CLEAR = 1.15
"""Where each of the first rounds is beyond what decides by at least this, to the same side, there are no more."""
OBVIOUS = 1.5
"""The same, for a single round."""
LONG_S = 0.5
"""After so many seconds there are no more rounds than the least."""
COLD_S = 0.05
"""What is made once at a first call takes far less than this: where one takes longer, it tells an obvious case."""
DOUBT = 1.15
"""On a busy machine one thread must be this many times faster: more of them might share the work less well."""
VETO = 1.5
"""From this gain on, doubt included, several threads are not asked: on a busy machine each of their calls is slow."""
QUIET = 0.9
"""A machine is busy if a program that keeps all of its threads at work gets less than this share of their time."""

Call = Callable[[], object]


class Compared(NamedTuple):
    """Two calls that were timed in turn.

    Args:
        gain: how many times faster the second is for sure: the lower quartile of the rounds.
        plain_ms: milliseconds of the first; on a busy machine those of one thread's CPU.
        other_ms: the same of the second.
        one_thread: whether the milliseconds are those of one thread's CPU, for the machine was busy.
    """

    gain: float
    plain_ms: float
    other_ms: float
    one_thread: bool = False


def compared(plain: Call, other: Call, device: torch.device, *, most: int = MOST_ROUNDS) -> Compared:
    """Compare two calls round by round, each in turn, so that a change in the machine's speed falls on both.

    On a quiet machine their time on the clock counts. On a busy one that says little: threads wait for one that is not
    running. There the CPU time of one thread decides, with a reserve, and what several threads take on the clock is
    only a veto of a small gain, where it clearly says the opposite.

    Args:
        plain: a call.
        other: what might take its place.
        device: that they compute on.
        most: rounds.
    """
    if device.type != "cpu" or torch.get_num_threads() == 1 or is_quiet():
        rounds = _rounds(plain, other, device, _first(plain, other, device), most=most)
        # Programs may have come while it was measured.
        if device.type != "cpu" or torch.get_num_threads() == 1 or is_quiet():
            return _told(rounds, _quartile(rounds, 0))
    with alone():
        first = _first(plain, other, device, needed=DOUBT)
        rounds = _rounds(plain, other, device, first, most=most, needed=DOUBT)
    gain = _quartile(rounds, 0) / DOUBT
    if 1 <= gain < VETO:
        gain = min(gain, _quartile(_rounds(plain, other, device, first._replace(seconds=None), most=LEAST_ROUNDS), 2))
    return _told(rounds, gain)._replace(one_thread=True)


def sure_gain(plain: Call, other: Call, device: torch.device) -> float:
    """How many times faster ``other`` is for sure; see :func:`compared`."""
    return compared(plain, other, device).gain


def _told(rounds: list[tuple[float, float]], gain: float) -> Compared:
    return Compared(gain, *(1000 * min(side) for side in zip(*rounds, strict=True)))


def _quartile(rounds: list[tuple[float, float]], number: int) -> float:
    ratios = [plain / other for plain, other in rounds]
    return statistics.quantiles(ratios, n=4)[number] if len(ratios) > 1 else ratios[0]


class _First(NamedTuple):
    """What the first calls of both sides show.

    Args:
        repeats: how many calls of either side make a round.
        seconds: of both, if one call makes a round: then they are the first round; else None.
    """

    repeats: tuple[int, int]
    seconds: tuple[float, float] | None


def _first(plain: Call, other: Call, device: torch.device, *, needed: float = 1.0, least_s: float = 0.004) -> _First:
    cold = _seconds(plain, 1, device), _seconds(other, 1, device)  # the first calls make what is made once
    if min(cold) > COLD_S and _decided([cold], needed):
        return _First((1, 1), cold)
    seconds = _seconds(plain, 1, device), _seconds(other, 1, device)
    repeats = [max(1, min(20, math.ceil(least_s / max(taken, 1e-9)))) for taken in seconds]
    return _First((repeats[0], repeats[1]), seconds if repeats == [1, 1] else None)


def _rounds(
    plain: Call,
    other: Call,
    device: torch.device,
    first: _First,
    *,
    most: int = MOST_ROUNDS,
    needed: float = 1.0,
) -> list[tuple[float, float]]:
    """Seconds of both calls in each round; the order is reversed from round to round.

    Args:
        plain: a call.
        other: what might take its place.
        device: that they compute on.
        first: what their first calls showed.
        most: largest number of rounds.
        needed: the gain that decides; there are fewer rounds where it is clearly reached, or clearly not.
    """
    rounds = [] if first.seconds is None else [first.seconds]
    while len(rounds) < (LEAST_ROUNDS if sum(map(sum, rounds)) > LONG_S else most) and not _decided(rounds, needed):
        taken = {}
        for at in (0, 1) if len(rounds) % 2 == 0 else (1, 0):
            taken[at] = _seconds((plain, other)[at], first.repeats[at], device)
        rounds.append((taken[0], taken[1]))
    return rounds


def _decided(rounds: list[tuple[float, float]], needed: float) -> bool:
    if not rounds:
        return False
    ratios = [plain_seconds / other_seconds / needed for plain_seconds, other_seconds in rounds]
    reserve = CLEAR if len(rounds) >= LEAST_ROUNDS else OBVIOUS
    return min(ratios) > reserve or max(ratios) < 1 / reserve


def _seconds(call: Call, repeats: int, device: torch.device) -> float:
    """Seconds of one call. A short one runs once before, so that the caches are filled as in real use."""
    if repeats > 1:
        call()
    start = now(device)
    for _ in range(repeats):
        call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (now(device) - start) / repeats


def now(device: torch.device) -> float:
    """Seconds: the CPU time of this thread where it alone computes, or else what the clock says."""
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return time.thread_time()
    return time.perf_counter()


def timed(
    run: Call, device: torch.device, *, least_calls: int = 2, least_ms: float = 5.0, enough: float = math.inf
) -> float:
    """Milliseconds of a call: the least of some, which other programs disturb least.

    Args:
        run: the call. It runs once more than it is measured: the first one fills caches.
        device: that it computes on.
        least_calls: calls that are measured, at least.
        least_ms: milliseconds that are measured, at least.
        enough: if the first measured call takes longer than this, it is the only one.
    """
    least, spent, calls = math.inf, 0.0, -1
    while calls < least_calls or spent < least_ms:
        start = now(device)
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = 1000 * (now(device) - start)
        calls += 1
        if calls:
            least, spent = min(least, taken), spent + taken
        if calls == 1 and taken > enough:
            break
    return least


def is_quiet() -> bool:
    """Whether this program gets the time of all its threads where it asks for it; a hundredth of a second."""
    matrix = torch.ones(384, 384)
    torch.mm(matrix, matrix)
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < 0.01:
        torch.mm(matrix, matrix)
    return time.process_time() - cpu >= QUIET * torch.get_num_threads() * (time.perf_counter() - wall)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """PyTorch computes on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def steady(device: torch.device) -> Iterator[None]:
    """One thread on a busy machine, so that :func:`timed` counts CPU time; all threads on a quiet one."""
    if device.type != "cpu" or torch.get_num_threads() == 1 or is_quiet():
        yield
        return
    with alone():
        yield
