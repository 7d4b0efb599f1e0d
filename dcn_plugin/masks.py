"""Sampling of defect masks: pure functions from (spec, shape, site) to bits.

The bits come from Philox, a counter-based generator whose raw stream NumPy keeps stable; no torch
generator, device or thread count has a part in it. Adding a mode is one function in ``_MODES`` and one
word in :data:`dcn_plugin.specs.Mode`; a mode that has a size gets a line in ``_SPANS`` there, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcn_plugin.errors import MaskShapeError, SpecError
from dcn_plugin.specs import MaskSpec, Mode, check_chw, plain_number
from dcn_plugin.support.randomness import philox

__all__ = ["sample_mask"]

_Shape = tuple[int, int, int]
_Bits = npt.NDArray[np.bool_]
_Words = Callable[[int], npt.NDArray[np.uint64]]  # the first n words of the site's stream


def sample_mask(spec: MaskSpec, shape: tuple[int, int, int], *, site: int) -> Tensor:
    """Sample the fixed defect mask of one site.

    Args:
        spec: keep probability, mode, sampling rule, seed and, for modes that have one, span.
        shape: (C, H, W) of the layer's output, without the batch.
        site: ordinal of its convolution; with ``spec.seed`` it fixes every bit.

    Returns:
        bool (C, H, W) on the CPU, contiguous, True = kept.

    Raises:
        MaskShapeError: ``shape`` is not three integers >= 1.
        SpecError: ``site`` is no whole number >= 0, or ``spec`` no :class:`MaskSpec`.

    Example:
        >>> mask = dcn.sample_mask(dcn.MaskSpec(p=0.3, sampling="exact"), (8, 10, 10), site=0)
        >>> tuple(mask.shape), int(mask.sum())
        ((8, 10, 10), 240)

    Source: paper, section 3.1, eq. (3)-(5).
    """
    if not isinstance(spec, MaskSpec):
        raise SpecError("The mask has no specification.", spec, "a MaskSpec", "pass e.g. MaskSpec(p=0.3)")
    shape = check_chw(shape, error=MaskShapeError)
    site = plain_number(site)
    if isinstance(site, bool) or not isinstance(site, int) or not 0 <= site < 2**64:
        raise SpecError("The site's ordinal is not usable.", site, "an int in [0, 2**64)")
    words = philox(spec.seed, site).random_raw
    return torch.from_numpy(_MODES[spec.mode](spec, shape, words)).expand(shape).contiguous()


def _neuron(spec: MaskSpec, shape: _Shape, words: _Words) -> _Bits:
    return _keep(spec, shape, words)


def _channel(spec: MaskSpec, shape: _Shape, words: _Words) -> _Bits:
    return _keep(spec, (shape[0], 1, 1), words)


def _shared(spec: MaskSpec, shape: _Shape, words: _Words) -> _Bits:
    return _keep(spec, (1, *shape[1:]), words)


def _hole(spec: MaskSpec, shape: _Shape, words: _Words) -> _Bits:
    """Square holes at independent places, as DropBlock's (Ghiasi et al. 2018) but with an exact share.

    A hole may have its top left corner up to b - 1 pixels outside, so that b * b corners can reach every neuron, at the
    border too. It is kept if none of them starts a hole: with probability ``p`` if each keeps with p ** (1 / (b * b)).
    """
    assert spec.span is not None
    channels, height, width = shape
    corners = (channels, height + spec.span - 1, width + spec.span - 1)
    # Two C libraries may round this power differently: by one step of 2**-53, which no draw in practice falls on.
    mask: _Bits = _keep_bernoulli(words(math.prod(corners)), spec.p ** (1 / spec.span**2)).reshape(corners)
    for axis in (1, 2):  # a square is dealt with as a row of columns: 2 b steps a neuron, not b * b
        mask = np.logical_and.reduce(np.lib.stride_tricks.sliding_window_view(mask, spec.span, axis=axis), axis=-1)
    return mask


def _nm(spec: MaskSpec, shape: _Shape, words: _Words) -> _Bits:
    """Of every m consecutive channels at a position, the n with the smallest draws.

    The last group is drawn whole and cut, so that its channels too are kept with probability ``p`` = n / m.
    """
    n, m = spec.pattern
    channels, height, width = shape
    drawn = (math.ceil(channels / m), m, height, width)
    order = np.argsort(words(math.prod(drawn)).reshape(drawn), axis=1, kind="stable")
    mask = np.zeros(drawn, dtype=np.bool_)
    np.put_along_axis(mask, order[:, :n], True, axis=1)
    return mask.reshape(-1, height, width)[:channels]


# mode -> its function. What it returns is expanded to (C, H, W): a dimension of 1 is drawn once for all.
_MODES: dict[Mode, Callable[[MaskSpec, _Shape, _Words], _Bits]] = {
    "neuron": _neuron,
    "channel": _channel,
    "shared": _shared,
    "hole": _hole,
    "nm": _nm,
}


def _keep(spec: MaskSpec, drawn: _Shape, words: _Words) -> _Bits:
    rule = _keep_exactly if spec.sampling == "exact" else _keep_bernoulli
    return rule(words(math.prod(drawn)), spec.p).reshape(drawn)


def _keep_bernoulli(raw: npt.NDArray[np.uint64], p: float) -> _Bits:
    # The top 53 bits are a uniform number u in [0, 1) that float64 holds exactly, so u < p is exact too.
    return np.asarray((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53 < p)


def _keep_exactly(raw: npt.NDArray[np.uint64], p: float) -> _Bits:
    zeros = round((1 - p) * raw.size)
    mask = np.ones(raw.size, dtype=np.bool_)
    mask[np.argsort(raw, kind="stable")[:zeros]] = False  # stable: equal draws fall to the lower index
    return mask
