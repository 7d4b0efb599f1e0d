"""Bands of frequencies and of colour that compete for a decision attack's queries, on each sample by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_plugin.attacks.frequencies import cosines, frequencies_kept
from dcn_plugin.attacks.noise import WIDEST_ORTHOGONAL, LowPassNoise, NoiseTable, OrthogonalNoise, row_sums
from dcn_plugin.attacks.streams import SampleStreams

__all__ = ["Bands", "Bandwidth", "Race", "RacedNoise", "Spectra", "bandwidths", "precision"]

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]
_Floats = npt.NDArray[np.float64]

#: The narrowest bandwidth has this many frequencies a side, the next ones ``WIDER`` times as many; one that would have
#: more than 1 / ``NEARLY_ALL`` of them has all.
LEAST_SIDE, WIDER, NEARLY_ALL = 8, 1.6, 1.5
#: Squared correlation of a normal number with its sign.
TELLING = 2 / math.pi
#: Before anything is known, each square of frequencies has an equal part of a gradient, and grey, which is an axis of
#: three, this share of it: most of a gradient may lie along one axis of colour, but along which is not known.
GREY = 1 / 3
#: A band's part of a gradient changes by about this much from one estimate to the next.
DRIFT = 0.15
#: This share of what is known of a gradient is forgotten from one estimate to the next.
FORGOTTEN = 0.1
#: A band's part is taken to be at least this share of what was expected before.
LEAST_PART = 0.05
#: In a race a kind's gain is the mean over about 1 / ``LATELY`` queries, ``FIRST_GAIN`` before the first.
LATELY, FIRST_GAIN = 0.05, 0.01
#: Directions are shared out by this power of the gain. All kinds have equal parts of a share ``EQUAL`` of them.
GREED, EQUAL = 4, 0.1
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Bandwidth:
    """A set of cosine coefficients that directions are drawn from: the lowest ones, of grey or of all colours.

    Args:
        share: of the frequencies a side, in (0, 1].
        grey: all channels change alike.
    """

    share: float
    grey: bool

    def noise(self, streams: SampleStreams, images: Tensor) -> OrthogonalNoise | LowPassNoise:
        """Directions of this bandwidth for images (N, C, H, W)."""
        if self.share == 1 and not self.grey:
            return OrthogonalNoise(streams, images.flatten(1))
        return LowPassNoise(streams, images, 1 / self.share, grey=self.grey)


def bandwidths(images: Tensor) -> list[Bandwidth]:
    """The bandwidths that compete on images (N, C, H, W), the narrowest first; the last one has full resolution.

    Images of three channels have each square of frequencies twice: in grey, and in all colours.
    """
    size, side, shares = min(images.shape[2:]), float(LEAST_SIDE), []
    while size / side > NEARLY_ALL:
        shares.append(math.ceil(side) / size)
        side *= WIDER
    colours = (True, False) if images.shape[1] == 3 else (False,)
    return [Bandwidth(share, grey) for share in (*shares, 1.0) for grey in colours]


class Bands:
    """The cosine coefficients of images, cut into B bands so that each bandwidth is some of them.

    Args:
        images: (N, C, H, W), whose size, dtype and device moves have.
        widths: from :func:`bandwidths`.

    ``sizes`` are the numbers of coefficients, (B,); ``members`` says which bands a bandwidth has, bool (bandwidths, B);
    ``expected`` is the part of a gradient in each band before anything is known, (B,).
    """

    def __init__(self, images: Tensor, widths: list[Bandwidth]) -> None:
        channels, height, width = images.shape[1:]
        self._shape = (channels, height, width)
        self._columns = torch.from_numpy(cosines(height)).to(images)
        self._rows = torch.from_numpy(cosines(width)).to(images)
        # The first of the colours' transform is grey.
        self._colours = torch.from_numpy(cosines(channels)).to(images)
        shares = sorted({each.share for each in widths})
        kinds = 2 if any(each.grey for each in widths) else 1
        down, along = (
            np.searchsorted([frequencies_kept(size, share) for share in shares], np.arange(size), side="right")
            for size in (height, width)
        )
        square = np.maximum(down[:, None], along)
        number = np.stack([kinds * square + (kinds == 2 and channel > 0) for channel in range(channels)]).reshape(-1)
        count = kinds * len(shares)
        self.sizes: _Floats = np.bincount(number, minlength=count).astype(np.float64)
        self.members: _Bools = np.array(
            [
                [shares[b // kinds] <= each.share and not (each.grey and b % kinds) for b in range(count)]
                for each in widths
            ]
        )
        parts = np.tile([GREY, 1 - GREY] if kinds == 2 else [1.0], len(shares)) * (self.sizes > 0)
        self.expected: _Floats = parts / parts.sum()
        self._number = torch.from_numpy(number).to(images.device)
        self._inside = F.one_hot(self._number, count).T.to(images)

    def coefficients(self, moves: Tensor) -> Tensor:
        """The cosine transform of moves (M, D), along the colours too: (M, D)."""
        return self._transform(moves, self._columns, self._rows.T, self._colours)

    def moves(self, coefficients: Tensor) -> Tensor:
        """The inverse of :meth:`coefficients`."""
        return self._transform(coefficients, self._columns.T, self._rows, self._colours.T)

    def energies(self, coefficients: Tensor) -> _Floats:
        """Squared length of coefficients (M, D) in each band: float64 (M, B)."""
        squares = coefficients.square()
        return np.stack([row_sums(squares * inside) for inside in self._inside], axis=1)

    def scaled(self, coefficients: Tensor, factors: _Floats) -> Tensor:
        """Coefficients (M, D), each times its band's factor, (M, B)."""
        return coefficients * torch.from_numpy(factors).to(coefficients)[:, self._number]

    def _transform(self, values: Tensor, columns: Tensor, rows: Tensor, colours: Tensor) -> Tensor:
        planes = values.reshape(-1, *self._shape)
        if planes.device.type == "cpu":
            # NumPy multiplies matrix by matrix: what comes out does not depend on how many images there are.
            turned = columns.numpy() @ (planes.numpy() @ rows.numpy())
            mixed = colours.numpy() @ turned.reshape(len(turned), self._shape[0], -1)
            return torch.from_numpy(mixed.reshape(len(mixed), -1))
        return (colours @ (columns @ (planes @ rows)).flatten(2)).flatten(1)


class Spectra:
    """Which part of the gradients of M samples lies in which band, learned from the estimates themselves.

    The signs that q orthogonal probes of d dimensions get tell a known share of a gradient within these dimensions
    (:func:`precision`). Times the part of the gradient that lies there, it is the squared cosine between gradient
    and estimate: the bandwidth where it is largest probes. Afterwards the estimate's energies tell more about the bands
    in it, bands that are mostly noise are damped, and what the hop will follow is taken to be there no more. So narrow
    bandwidths begin where few probes tell much, and give way where they are exhausted or hold little.

    Args:
        bands: of the images.
        count: M.

    ``parts`` are the parts, float64 (M, B), each row of sum 1.
    """

    def __init__(self, bands: Bands, count: int) -> None:
        self._bands = bands
        self._sizes: _Floats = bands.members @ bands.sizes
        self.parts: _Floats = np.tile(bands.expected, (count, 1))

    def keep(self, mask: _Bools) -> None:
        """Keep the samples ``mask``, bool (M,)."""
        self.parts = self.parts[mask]

    def choose(self, probes: _Ints) -> _Ints:
        """The bandwidth of each sample whose estimate from so many probes, (M,), should be closest to the gradient."""
        # No matrix product: its rounding may depend on how many samples there are.
        within = (self.parts[:, None] * self._bands.members).sum(axis=2)
        chosen: _Ints = np.argmax(within * precision(probes[:, None], self._sizes), axis=1)
        return chosen

    def learn(self, normals: Tensor, chosen: _Ints, probes: _Ints) -> Tensor:
        """Learn from estimates, and damp what is noise in them.

        Args:
            normals: (M, D), estimated with probes of the bandwidths ``chosen``.
            chosen: int64 (M,).
            probes: int64 (M,), their numbers.

        Returns:
            (M, D), of any length.
        """
        members, size = self._bands.members[chosen], self._sizes[chosen][:, None]
        coefficients = self._bands.coefficients(normals)
        energies = self._bands.energies(coefficients) * members
        energies /= np.maximum(energies.sum(axis=1, keepdims=True), _TINY)
        told = precision(probes[:, None], size)
        # A share ``told`` of an estimate's energy is the gradient's; the rest is spread evenly over its dimensions.
        even = members * self._bands.sizes / size
        total = (self.parts * members).sum(axis=1, keepdims=True)
        before = self.parts * members / total
        seen = (energies - (1 - told) * even) / told
        doubt = 2 * even / size * ((1 - told) / told) ** 2
        parts = np.maximum(before + DRIFT**2 / (DRIFT**2 + doubt) * (seen - before), LEAST_PART * before)
        parts /= parts.sum(axis=1, keepdims=True)
        self.parts = np.where(members, total * parts, self.parts)
        signal, noise = told * parts, (1 - told) * even
        factors = signal / np.maximum(signal + noise, _TINY)
        self.deplete(chosen, 1 - told[:, 0])
        return self._bands.moves(self._bands.scaled(coefficients, factors))

    def deplete(self, chosen: _Ints, left: _Floats) -> None:
        """Take it that only a share ``left``, (M,), of the gradient within the bandwidths ``chosen``, (M,), is left."""
        parts = self.parts * np.where(self._bands.members[chosen], left[:, None], 1)
        parts /= parts.sum(axis=1, keepdims=True)
        parts += FORGOTTEN * (self._bands.expected - parts)
        parts = np.maximum(parts, LEAST_PART * self._bands.expected)
        self.parts = parts / parts.sum(axis=1, keepdims=True)


def precision(probes: _Ints, size: float | _Floats) -> _Floats:
    """About the squared cosine between a gradient of ``size`` dimensions and its estimate from the signs of probes.

    Up to :data:`~dcn_plugin.attacks.noise.WIDEST_ORTHOGONAL` dimensions the probes are orthogonal to each other.
    """
    told = TELLING * probes / size
    own = np.where(np.asarray(size) <= WIDEST_ORTHOGONAL, np.minimum(told, TELLING), 0)
    # Of the noise, which is 1 to ``told``, the probes' own part does not disturb where they are orthogonal.
    estimated: _Floats = told / (told + 1 - own)
    return estimated


class Race:
    """Kinds of directions that share out the queries of M samples by what they brought lately.

    Args:
        kinds: K, how many there are.
        count: M.

    ``kind`` is that of the current direction of each sample, int64 (M,).
    """

    def __init__(self, kinds: int, count: int) -> None:
        self._gain = np.full((count, kinds), FIRST_GAIN)
        self._credit = np.zeros((count, kinds))
        self.kind: _Ints = np.zeros(count, dtype=np.int64)
        if kinds > 1:
            self._deal(np.arange(count))

    def keep(self, mask: _Bools) -> None:
        """Keep the samples ``mask``, bool (M,)."""
        self._gain, self._credit, self.kind = self._gain[mask], self._credit[mask], self.kind[mask]

    def record(self, gains: _Floats, over: _Bools) -> None:
        """Note what a query of each sample brought, and choose the next direction's kind where this one is over.

        Args:
            gains: float64 (M,), of the logarithm of the distance.
            over: bool (M,).
        """
        if self._gain.shape[1] == 1:
            return
        everyone = np.arange(len(gains))
        self._gain[everyone, self.kind] += LATELY * (gains - self._gain[everyone, self.kind])
        self._deal(over.nonzero()[0])

    def _deal(self, rows: _Ints) -> None:
        """Whose share of the directions so far is most in arrears comes next."""
        gain = self._gain[rows]
        worth = (gain / np.maximum(gain.max(axis=1, keepdims=True), _TINY)) ** GREED + _TINY
        share = (1 - EQUAL) * worth / worth.sum(axis=1, keepdims=True) + EQUAL / gain.shape[1]
        credit = self._credit[rows] + share
        self.kind[rows] = credit.argmax(axis=1)
        credit[np.arange(len(rows)), self.kind[rows]] -= 1
        self._credit[rows] = credit


class RacedNoise:
    """Directions of the bandwidths that compete.

    Args:
        streams: the samples, and the key of the tables.
        images: (N, C, H, W), whose size, dtype and device the directions take.
    """

    def __init__(self, streams: SampleStreams, images: Tensor) -> None:
        self._tables: list[NoiseTable | LowPassNoise] = [each.noise(streams, images) for each in bandwidths(images)]
        #: How many bandwidths there are.
        self.kinds = len(self._tables)

    def directions(self, rows: _Ints, counters: _Ints, kind: _Ints) -> tuple[Tensor, _Floats]:
        """Look up one direction of the bandwidth ``kind``, int64 (M,), each; see :meth:`NoiseTable.directions`."""
        first, *others = map(int, np.unique(kind))
        if not others:
            return self._tables[first].directions(rows, counters)
        squares = np.zeros(len(rows))
        points: Tensor | None = None
        for number in (first, *others):
            who = (kind == number).nonzero()[0]
            moves, squares[who] = self._tables[number].directions(rows[who], counters[who])
            points = moves.new_empty(len(rows), moves.shape[1]) if points is None else points
            points[torch.from_numpy(who)] = moves
        assert points is not None
        return points, squares
