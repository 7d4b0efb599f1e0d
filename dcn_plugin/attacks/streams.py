"""One random stream a sample: what a sample draws depends on its place in the data set, not on its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcn_plugin.support.randomness import philox, stream_key

__all__ = ["SampleStreams"]

_Draw = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[np.float64]]


class SampleStreams:
    """Independent streams, keyed by (purpose, seed, index of the sample).

    Args:
        purpose: who draws, e.g. "PGD"; other purposes get other numbers from the same seed.
        seed: 0 .. 2**64 - 1.
        indices: place of each sample in its data set, each >= 0.

    ``key`` is the 64-bit hash of purpose and seed.

    Raises:
        SpecError: the seed is out of range.
    """

    def __init__(self, purpose: str, seed: int, indices: Iterable[int]) -> None:
        self.key = stream_key(purpose, seed)
        self.indices = tuple(indices)
        self._generators = [np.random.Generator(philox(self.key, index)) for index in self.indices]

    def uniform(self, like: Tensor, low: float, high: float, *, rows: Sequence[int] | None = None) -> Tensor:
        """Draw from [low, high), one stream a row of ``like``: its shape, dtype and device.

        ``rows`` says which streams draw, all of them by default; the others stay where they are.
        """
        return self._draw(like, lambda generator, shape: low + (high - low) * generator.random(shape), rows)

    def normal(self, like: Tensor, *, rows: Sequence[int] | None = None) -> Tensor:
        """Draw from N(0, 1), one stream a row of ``like``: its shape, dtype and device.

        ``rows`` says which streams draw, all of them by default; the others stay where they are.
        """
        return self._draw(like, lambda generator, shape: generator.standard_normal(shape), rows)

    def _draw(self, like: Tensor, draw: _Draw, rows: Sequence[int] | None) -> Tensor:
        generators = self._generators if rows is None else [self._generators[row] for row in rows]
        assert len(like) == len(generators)
        numbers = np.stack([draw(generator, tuple(like.shape[1:])) for generator in generators])
        return torch.from_numpy(numbers).to(device=like.device, dtype=like.dtype)
