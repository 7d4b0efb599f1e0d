"""Frequencies of an image along its two axes: the cosine transform, and filters that act along both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count, is_number, plain

__all__ = ["AxisFilter", "check_cutoff", "check_kernel", "cosines", "frequencies_kept"]

_Floats = npt.NDArray[np.float64]


def cosines(count: int) -> _Floats:
    """The orthonormal cosine transform (DCT-II) of ``count`` numbers: (frequencies, count), the lowest first."""
    places = np.arange(count) + 0.5
    rows: _Floats = np.sqrt(2 / count) * np.cos(np.pi / count * np.arange(count)[:, None] * places)
    rows[0] = np.sqrt(1 / count)
    return rows


def frequencies_kept(size: int, cutoff: float) -> int:
    """How many of the lowest frequencies along an axis of ``size`` pixels a cut-off keeps: at least the first."""
    return max(1, min(size, math.ceil(cutoff * size - 1e-9)))


def check_cutoff(cutoff: object) -> float:
    """A cut-off as a float.

    Raises:
        SpecError: it is no number in (0, 1].
    """
    share = plain(cutoff)
    if not (is_number(share) and 0 < share <= 1):
        raise SpecError(
            "The cut-off is not usable.", cutoff, "a number in (0, 1]",
            "the share of frequencies along each axis that stay, the lowest first; 1 keeps all",
        )  # fmt: skip
    return float(share)


def check_kernel(kernel: object) -> int:
    """The width of a kernel as an int.

    Raises:
        SpecError: it is no odd int >= 1.
    """
    width = plain(kernel)
    if not (is_count(width, least=1) and width % 2):
        raise SpecError("The kernel is not usable.", kernel, "an odd int >= 1", "published: 15 for 299 pixels")
    return int(width)


@dataclass(frozen=True, eq=False)
class AxisFilter:
    """A linear filter along both axes of each channel: X -> columns @ X @ rows.

    On a CPU NumPy multiplies image by image: what comes out for one does not depend on how many there are.

    Args:
        columns: (H, H), what acts along the height.
        rows: (W, W), what acts along the width.
    """

    columns: _Floats
    rows: _Floats

    @classmethod
    def low_pass(cls, height: int, width: int, cutoff: float) -> Self:
        """Keep the lowest frequencies of the cosine transform (DCT-II), a share ``cutoff`` of them along each axis.

        It is a projection: what it keeps it does not change.

        Source: Guo, Frank, Weinberger 2018, arXiv 1809.08758, section 3.
        """
        along = [cosines(size)[: frequencies_kept(size, cutoff)] for size in (height, width)]
        columns, rows = (basis.T @ basis for basis in along)
        return cls(columns, rows)

    @classmethod
    def smoothing(cls, height: int, width: int, kernel: int) -> Self:
        """Convolve with a Gaussian of ``kernel`` x ``kernel`` pixels that reaches three sigma; zeros beyond the border.

        Source: Dong et al. 2019, arXiv 1904.02884, section 3.2.
        """
        weights = np.exp(-0.5 * np.linspace(-3, 3, kernel) ** 2) if kernel > 1 else np.ones(1)
        weights /= weights.sum()
        columns, rows = (_banded(weights, size) for size in (height, width))
        return cls(columns, rows)

    def __call__(self, images: Tensor) -> Tensor:
        """Filter (N, C, H, W)."""
        columns, rows = (torch.from_numpy(matrix).to(images) for matrix in (self.columns, self.rows))
        if images.device.type == "cpu":
            return torch.from_numpy(columns.numpy() @ images.detach().numpy() @ rows.numpy())
        return columns @ images @ rows


def _banded(weights: _Floats, size: int) -> _Floats:
    """The symmetric matrix (size, size) of a convolution with symmetric weights, zeros beyond the border."""
    reach = len(weights) // 2
    offsets = np.arange(size)[:, None] - np.arange(size)
    inside = np.abs(offsets) <= reach
    matrix: _Floats = np.where(inside, weights[np.clip(offsets + reach, 0, len(weights) - 1)], 0.0)
    return matrix
