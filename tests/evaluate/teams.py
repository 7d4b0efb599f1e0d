"""A team whose processes are threads of this one, so that a test sees all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from dcn_plugin.evaluate import Team

T = TypeVar("T")


class ThreadTeam(Team):
    """One thread of several that meet in a list."""

    barrier: threading.Barrier
    slots: list[list[Any]]

    def gather(self, own: list[T]) -> list[T]:
        self.slots[self.rank] = own
        self.barrier.wait()
        found = [item for slot in self.slots for item in slot]
        self.barrier.wait()  # nobody writes before all have read
        return found


def together(size: int, work: Callable[[Team], T]) -> list[T]:
    """What ``work`` returns on each of so many threads; the error of one that fails."""
    barrier, slots = threading.Barrier(size, timeout=60), [[] for _ in range(size)]  # type: ignore[var-annotated]

    def one(rank: int) -> T:
        team = ThreadTeam(rank, size)
        vars(team).update(barrier=barrier, slots=slots)
        try:
            return work(team)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
