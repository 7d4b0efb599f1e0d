"""Which images a process measures, where several share an image set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from dcn_plugin.data import IndexedImages, LabelledImages
from dcn_plugin.support.arguments import check_count
from dcn_plugin.support.processes import Team

__all__ = ["own_batches"]


def own_batches(
    data: LabelledImages, batch_size: int, team: Team, *, count: int | None = None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Go through this process's batches: the rank-th and every size-th after it.

    Args:
        data: the whole set. Where any image can be had by its index, only the own ones are read.
        batch_size: images a batch.
        team: the processes.
        count: the first this many images of the set, all by default.

    Yields:
        Place of the first image, images (B, C, H, W), labels int64 (B,), whatever integers the set gives.

    Raises:
        SpecError: ``batch_size`` is below 1.
    """
    check_count(batch_size, "batch size")
    total = len(data) if count is None else min(count, len(data))
    if team.size > 1 and hasattr(data, "take") and hasattr(data, "labels"):
        indexed = cast(IndexedImages, data)
        for first in range(team.rank * batch_size, total, team.size * batch_size):
            places = torch.arange(first, min(first + batch_size, total))
            yield first, indexed.take(places), indexed.labels.long()[places]
        return
    for number, (images, labels) in enumerate(data.batches(batch_size)):
        first = number * batch_size
        if first >= total:
            return
        if number % team.size == team.rank:
            yield first, images[: total - first], labels[: total - first].long()
