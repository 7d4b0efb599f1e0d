"""The processes at work: this one alone, or several that share the images of every measurement or training step.

The images are dealt out by whole batches, so that an attack which draws for a batch at once draws the same. What
became of each image is then put together in the order of the data, on every process: they all end with the records
that one process would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dcn_plugin.errors import SpecError

__all__ = ["ALONE", "Part", "Team", "whole"]

T = TypeVar("T")
Part = tuple[int, tuple[Tensor, ...]]
"""Place of a batch's first image in the data, and columns (B, ...) on the CPU."""


class Team(NamedTuple):
    """The processes that measure or train together; the first of them writes.

    A subclass with a :meth:`gather` of its own carries processes that something else than Accelerate started.

    Args:
        rank: number of this process, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def of(cls, accelerator: Any) -> Team:
        """The processes of an :class:`accelerate.Accelerator`; None: this one alone. A team is taken as it is."""
        if accelerator is None:
            return ALONE
        if isinstance(accelerator, Team):
            return accelerator
        return Team(accelerator.process_index, accelerator.num_processes)

    @property
    def rows(self) -> slice:
        """This process's part of a batch: rows ``rank``, ``rank + size``, ..."""
        return slice(self.rank, None, self.size)

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def gather(self, own: list[T]) -> list[T]:
        """The items of all processes, in the order of the processes. All have to call it."""
        if self.size == 1:
            return own
        from accelerate.utils import gather_object

        return list(gather_object(own))

    def first(self, ask: Callable[[], T]) -> T:
        """The result of ``ask`` in the first process, on all of them; the others do not call it."""
        (answer,) = self.gather([ask()] if self.leads else [])
        return answer

    def check(self, key: Mapping[str, Any] | None) -> None:
        """Make sure that all processes are about to measure the same.

        Args:
            key: what the measurement depends on; None: it cannot be told.

        Raises:
            SpecError: they are not; the message names what differs.
        """
        if self.size == 1:
            return
        ours, *others = self.gather([key])
        different = sorted({name for other in others for name in _different(ours, other)})
        if different:
            raise SpecError(
                "The processes do not measure the same.",
                different,
                "the same models, data and settings on machines of one kind",
                "seed whatever makes the models: weights that are drawn anew differ from process to process",
            )


ALONE = Team()


def whole(parts: Sequence[Part], team: Team) -> tuple[Tensor, ...]:
    """Put the results of all processes together, in the order of the data.

    Args:
        parts: of this process, maybe none; every part of every process has the same columns.
        team: the processes, all of which have to call this.

    Returns:
        The columns, each (N, ...).
    """
    if team.size > 1:
        # A slice would take all that it was cut from along with it.
        parts = team.gather([(first, tuple(column.clone() for column in columns)) for first, columns in parts])
    in_order = [columns for _, columns in sorted(parts, key=lambda part: part[0])]
    return tuple(torch.cat(column) for column in zip(*in_order, strict=True))


def _different(left: Any, right: Any, name: str = "key") -> Iterator[str]:
    if not (isinstance(left, Mapping) and isinstance(right, Mapping)):
        if left != right:
            yield name
        return
    for key in {**left, **right}:
        inner = str(key) if name == "key" else f"{name}.{key}"
        yield from _different(left.get(key), right.get(key), inner)
