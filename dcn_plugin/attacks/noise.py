"""Random directions at the price of a copy, for attacks that need millions of them."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_plugin.attacks.frequencies import cosines, frequencies_kept
from dcn_plugin.attacks.streams import SampleStreams
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count
from dcn_plugin.support.randomness import philox

__all__ = ["COMPETE", "CoarseNoise", "LowPassNoise", "NoiseTable", "OrthogonalNoise", "check_coarse", "row_sums"]

#: The value of an attack's ``coarse`` with which bandwidths compete; see :mod:`dcn_plugin.attacks.bands`.
COMPETE = "compete"
TABLE_SIZE = 2**20
#: The widest directions that :class:`OrthogonalNoise` makes orthogonal: its matrix takes 8 MiB then. Wider ones are
#: nearly orthogonal by themselves, as long as there are far fewer than dimensions.
WIDEST_ORTHOGONAL = 1024

_Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]
_Floats = npt.NDArray[np.float64]


class NoiseTable:
    """Standard normal directions; which one a sample gets depends on its stream and on a counter.

    A table of independent normal numbers is drawn once. A direction is a slice of it, whose place a hash of sample
    and counter picks. Two slices at different places are uncorrelated as two fresh draws are, although their
    numbers overlap, and reading one costs a copy where drawing one would cost more than a small network's forward
    pass. Every sample of a batch is served by one call, whatever its counter.

    Args:
        streams: the samples, and the key of the table.
        like: (N, D), whose width, dtype and device the directions take.

    Source: the shared noise table of Salimans et al. 2017, arXiv 1703.03864, section 2.1.
    """

    def __init__(self, streams: SampleStreams, like: Tensor) -> None:
        self.width = like.shape[1]
        # Images as large as the table would find the same few slices again and again.
        size = max(TABLE_SIZE, 4 * self.width)
        table, self._squares = _table(streams.key, size)
        self._places = np.array([size - self.width + 1], dtype=np.uint64)
        self._keys = _mix(np.array([streams.key], dtype=np.uint64) + _mix(np.array(streams.indices, dtype=np.uint64)))
        numbers = torch.from_numpy(table).to(device=like.device, dtype=like.dtype)
        # All slices as one overlapping view, so that a batch of them is one gather.
        self._slices = numbers.as_strided((size - self.width + 1, self.width), (1, 1))
        # NumPy copies rows four times faster than torch gathers them.
        self._on_cpu = self._slices.numpy() if like.device.type == "cpu" else None

    def directions(self, rows: _Ints, counters: _Ints, numbers: _Ints | None = None) -> tuple[Tensor, _Floats]:
        """Look up one direction for each entry of ``rows``.

        Args:
            rows: int64 (M,), which samples.
            counters: int64 (M,), >= 0, the number of the direction within its sample's stream.
            numbers: int64 (M,), >= 0, where the direction is one of a series that begins at ``counters``: its number
                within the series.

        Returns:
            (M, D), which the caller may overwrite, and the squared L2 norm of each, float64 (M,).
        """
        if numbers is not None:
            counters = counters + numbers
        places = (_mix(self._keys[rows] + counters.astype(np.uint64)) % self._places).astype(np.int64)
        norms = self._squares[places + self.width] - self._squares[places]
        if self._on_cpu is not None:
            return torch.from_numpy(self._on_cpu[places]), norms
        return self._slices[torch.from_numpy(places).to(self._slices.device)], norms


class OrthogonalNoise(NoiseTable):
    """Directions of which each D of one series make a basis: they are orthogonal to each other.

    An estimate from q answers about random directions is disturbed by their overlaps, the more the closer q is to D.
    A direction is a row of one random rotation, whose columns' signs are flipped: each sample flips its own ones, and
    others for each basis. Above :data:`WIDEST_ORTHOGONAL` dimensions, and outside of a series, directions are those of
    :class:`NoiseTable`.

    Args:
        streams: the samples, and the key of the table.
        like: (N, D), whose width, dtype and device the directions take.

    Source: orthogonal directions for estimates of gradients, Choromanski et al. 2018, arXiv 1804.02395.
    """

    def __init__(self, streams: SampleStreams, like: Tensor) -> None:
        super().__init__(streams, like)
        if self.width <= WIDEST_ORTHOGONAL:
            rotation = _rotation(self.width)
            self._lengths = (rotation * rotation).sum(axis=1)
            self._rotation = torch.from_numpy(rotation).to(device=like.device, dtype=like.dtype)

    def directions(self, rows: _Ints, counters: _Ints, numbers: _Ints | None = None) -> tuple[Tensor, _Floats]:
        """Look up one direction for each entry of ``rows``; see :meth:`NoiseTable.directions`."""
        if self.width > WIDEST_ORTHOGONAL or numbers is None:
            return super().directions(rows, counters, numbers)
        basis, place = np.divmod(numbers, self.width)
        moves = super().directions(rows, counters, basis)[0].sign_()
        return moves.mul_(self._rotation[torch.from_numpy(place).to(moves.device)]), self._lengths[place]


class CoarseNoise:
    """Directions drawn at a coarse resolution and enlarged by bilinear interpolation.

    Args:
        streams: the samples, and the key of the table.
        images: (N, C, H, W), whose size, dtype and device the directions take.
        factor: H and W are divided by it, rounding up.
    """

    def __init__(self, streams: SampleStreams, images: Tensor, factor: int) -> None:
        channels, height, width = images.shape[1:]
        self._size = (height, width)
        self._coarse = (channels, -(-height // factor), -(-width // factor))
        self._table = NoiseTable(streams, images.new_empty(len(images), math.prod(self._coarse)))

    def directions(self, rows: _Ints, counters: _Ints) -> tuple[Tensor, _Floats]:
        """Look up one direction for each entry of ``rows``; see :meth:`NoiseTable.directions`."""
        coarse = self._table.directions(rows, counters)[0].view(-1, *self._coarse)
        moves = F.interpolate(coarse, size=self._size, mode="bilinear").flatten(1)
        return moves, row_sums(moves * moves)


class LowPassNoise:
    """Directions of low frequencies: :class:`OrthogonalNoise` as the first coefficients of a cosine transform.

    The transform keeps lengths and angles: directions of which each D of one series make a basis, D the number of
    coefficients, make a basis of what has no higher frequencies.

    Args:
        streams: the samples, and the key of the table.
        images: (N, C, H, W), whose size, dtype and device the directions take.
        factor: ceil(H / factor) vertical and ceil(W / factor) horizontal frequencies of each channel are used, >= 1.
        grey: all channels change alike.

    Source: Guo, Frank, Weinberger 2018, arXiv 1809.08758, section 3.
    """

    def __init__(self, streams: SampleStreams, images: Tensor, factor: float, *, grey: bool = False) -> None:
        channels, height, width = images.shape[1:]
        self._alike = channels if grey else 1
        along = [frequencies_kept(size, 1 / factor) for size in (height, width)]
        self._coefficients = (channels // self._alike, along[0], along[1])
        self._noise = OrthogonalNoise(streams, images.new_empty(len(images), math.prod(self._coefficients)))
        # Columns: (H, frequencies). Rows: (frequencies, W).
        self._columns = torch.from_numpy(cosines(height)[: self._coefficients[1]].T).to(images)
        self._rows = torch.from_numpy(cosines(width)[: self._coefficients[2]]).to(images)

    def directions(self, rows: _Ints, counters: _Ints, numbers: _Ints | None = None) -> tuple[Tensor, _Floats]:
        """Look up one direction for each entry of ``rows``; see :meth:`NoiseTable.directions`."""
        drawn, squares = self._noise.directions(rows, counters, numbers)
        drawn = drawn.view(-1, *self._coefficients)
        if drawn.device.type == "cpu":
            # NumPy multiplies matrix by matrix: what comes out does not depend on how many directions there are.
            moves = torch.from_numpy(self._columns.numpy() @ (drawn.numpy() @ self._rows.numpy()))
        else:
            moves = self._columns @ (drawn @ self._rows)
        if self._alike > 1:
            return (moves / math.sqrt(self._alike)).repeat(1, self._alike, 1, 1).flatten(1), squares
        return moves.flatten(1), squares


def check_coarse(factor: object) -> None:
    """Refuse what is no setting ``coarse`` of a decision attack.

    Raises:
        SpecError: it is neither an int >= 1 nor :data:`COMPETE`.
    """
    if factor != COMPETE and not is_count(factor, least=1):
        raise SpecError(
            "The coarse resolution is not usable.", factor, f"an int >= 1, or {COMPETE!r}", "1 = full resolution always"
        )


def row_sums(values: Tensor) -> _Floats:
    """Sum of each row of (M, D), float64 (M,). A row's sum does not depend on how many rows there are."""
    if len(values) == 1:
        # torch cuts a single long row into one piece a thread; beside another row it does not.
        return row_sums(values.repeat(2, 1))[:1]
    sums: _Floats = values.sum(dim=1).cpu().numpy().astype(np.float64)
    return sums


@functools.lru_cache(maxsize=2)
def _table(key: int, size: int) -> tuple[_Floats, _Floats]:
    """``size`` normal numbers, and the running sum of their squares, which starts with 0."""
    generator = np.random.Generator(philox(key, 2**64 - 1))
    # float32 numbers: both dtypes of images see the same directions.
    table = generator.standard_normal(size, dtype=np.float32).astype(np.float64)
    squares = np.concatenate([np.zeros(1), np.cumsum(table * table)])
    return table, squares


@functools.lru_cache(maxsize=8)
def _rotation(width: int) -> _Floats:
    """A random rotation, times the root of its width: (width, width), float32 numbers as in :func:`_table`."""
    generator = np.random.Generator(philox(width, 2**64 - 2))
    rotation = np.linalg.qr(generator.standard_normal((width, width)))[0]
    rows: _Floats = (rotation * math.sqrt(width)).astype(np.float32).astype(np.float64)
    return rows


def _mix(words: _Words) -> _Words:
    """SplitMix64's output function (Steele et al. 2014): neighbouring words land far apart. Wraps at 2**64."""
    words = words * np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
