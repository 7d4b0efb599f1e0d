"""Sampling of defect masks: pure functions from (spec, shape, site) to bits.

The bits come from Philox, a counter-based generator whose raw stream NumPy keeps stable; no torch
generator, device or thread count has a part in it. Adding a mode is one function in ``_DRAWN`` and one
word in :data:`dcn_plugin.specs.Mode`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcn_plugin.errors import MaskShapeError, SpecError
from dcn_plugin.specs import MaskSpec, Mode, check_chw

__all__ = ["sample_mask"]

_Shape = tuple[int, int, int]

# mode -> the shape whose entries are drawn; the rest of (C, H, W) repeats them.
_DRAWN: dict[Mode, Callable[[_Shape], _Shape]] = {
    "neuron": lambda shape: shape,
    "channel": lambda shape: (shape[0], 1, 1),
    "shared": lambda shape: (1, shape[1], shape[2]),
}


def sample_mask(spec: MaskSpec, shape: tuple[int, int, int], *, site: int) -> Tensor:
    """Sample the fixed defect mask of one site.

    Args:
        spec: keep probability, mode, sampling rule and seed.
        shape: (C, H, W) of the layer's output, without the batch.
        site: ordinal of its convolution; with ``spec.seed`` it fixes every bit.

    Returns:
        bool (C, H, W) on the CPU, contiguous, True = kept.

    Raises:
        MaskShapeError: ``shape`` is not three integers >= 1.
        SpecError: ``site`` is negative.

    Source: paper, section 3.1, eq. (3)-(5).
    """
    shape = check_chw(shape, error=MaskShapeError)
    if isinstance(site, bool) or not isinstance(site, int) or not 0 <= site < 2**64:
        raise SpecError("The site's ordinal is not usable.", site, "an int in [0, 2**64)")
    drawn = _DRAWN[spec.mode](shape)
    count = math.prod(drawn)
    raw = np.random.Philox(key=np.array([spec.seed, site], dtype=np.uint64)).random_raw(count)
    kept = _keep_exactly(raw, spec.p) if spec.sampling == "exact" else _keep_bernoulli(raw, spec.p)
    return torch.from_numpy(kept).view(drawn).expand(shape).contiguous()


def _keep_bernoulli(raw: npt.NDArray[np.uint64], p: float) -> npt.NDArray[np.bool_]:
    # The top 53 bits are a uniform number u in [0, 1) that float64 holds exactly, so u < p is exact too.
    return np.asarray((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53 < p)


def _keep_exactly(raw: npt.NDArray[np.uint64], p: float) -> npt.NDArray[np.bool_]:
    zeros = round((1 - p) * raw.size)
    kept = np.ones(raw.size, dtype=np.bool_)
    kept[np.argsort(raw, kind="stable")[:zeros]] = False  # stable: equal draws fall to the lower index
    return kept
