"""Sampling of defect masks: pure functions from (spec, shape, site) to bits.

The bits come from Philox, a counter-based generator whose raw stream NumPy keeps stable; no torch
generator, device or thread count has a part in it. A neuron is kept while its draw is below a border that
falls with p: masks of one stream are nested. Adding a mode is one function in ``_MODES``, its border in
``MaskDraws``, and one word in :data:`dcn_plugin.specs.Mode`; a mode that has a size gets a line in ``_SPANS``
there, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcn_plugin.errors import MaskShapeError, SpecError
from dcn_plugin.specs import MaskSpec, Mode, check_chw, plain_number
from dcn_plugin.support.randomness import philox

__all__ = ["MaskDraws", "mask_draws", "sample_mask"]

_Shape = tuple[int, int, int]
_Draws = npt.NDArray[np.float64]
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
    return mask_draws(spec, shape, site=site).mask(spec.p)


@dataclass(frozen=True, eq=False)
class MaskDraws:
    """What decides, neuron by neuron, at which keep probability it is still there.

    Args:
        values: float64, broadcastable to ``shape``: a dimension of 1 is drawn once for all. A neuron is kept while
            its value is below :meth:`border`.
        spec: how it was drawn; its p is one of many.
        shape: (C, H, W).
        entries: how many values were drawn.
    """

    values: Tensor
    spec: MaskSpec
    shape: tuple[int, int, int]
    entries: int

    def border(self, p: float) -> float:
        """The border at a keep probability: it falls with p, so that masks of one stream are nested.

        Raises:
            SpecError: ``p`` is out of range, or the mode has no mask of it (a pattern n:m).
        """
        spec = dataclasses.replace(self.spec, p=p)
        if spec.mode == "nm":
            return spec.pattern[0]
        if spec.sampling == "exact":
            return self.entries - round((1 - spec.p) * self.entries)
        # Two C libraries may round this power differently: by one step of 2**-53, which no draw in practice falls on.
        return spec.p if spec.span is None else spec.p ** (1 / spec.span**2)

    def mask(self, p: float) -> Tensor:
        """The mask at a keep probability: bool (C, H, W) on the CPU, contiguous, True = kept.

        Raises:
            SpecError: as :meth:`border` does.
        """
        return (self.values < self.border(p)).expand(self.shape).contiguous()


def mask_draws(spec: MaskSpec, shape: tuple[int, int, int], *, site: int) -> MaskDraws:
    """Draw what the masks of one site at all keep probabilities are made of.

    Args:
        spec: mode, sampling rule, seed and span count; p does not.
        shape: (C, H, W) of the layer's output, without the batch.
        site: ordinal of its convolution; with ``spec.seed`` it fixes every draw.

    Raises:
        MaskShapeError: ``shape`` is not three integers >= 1.
        SpecError: ``site`` is no whole number >= 0, or ``spec`` no :class:`MaskSpec`.

    Example:
        >>> draws = mask_draws(dcn.MaskSpec(p=0.3), (8, 10, 10), site=0)
        >>> bool((draws.mask(0.3) <= draws.mask(0.5)).all())
        True
    """
    if not isinstance(spec, MaskSpec):
        raise SpecError("The mask has no specification.", spec, "a MaskSpec", "pass e.g. MaskSpec(p=0.3)")
    shape = check_chw(shape, error=MaskShapeError)
    site = plain_number(site)
    if isinstance(site, bool) or not isinstance(site, int) or not 0 <= site < 2**64:
        raise SpecError("The site's ordinal is not usable.", site, "an int in [0, 2**64)")
    values = _MODES[spec.mode](spec, shape, philox(spec.seed, site).random_raw)
    return MaskDraws(torch.from_numpy(values), spec, shape, values.size)


def _neuron(spec: MaskSpec, shape: _Shape, words: _Words) -> _Draws:
    return _entries(spec, shape, words)


def _channel(spec: MaskSpec, shape: _Shape, words: _Words) -> _Draws:
    return _entries(spec, (shape[0], 1, 1), words)


def _shared(spec: MaskSpec, shape: _Shape, words: _Words) -> _Draws:
    return _entries(spec, (1, *shape[1:]), words)


def _hole(spec: MaskSpec, shape: _Shape, words: _Words) -> _Draws:
    """Square holes at independent places, as DropBlock's (Ghiasi et al. 2018) but with an exact share.

    A hole may have its top left corner up to b - 1 pixels outside, so that b * b corners can reach every neuron, at the
    border too. It is kept if none of them starts a hole: with probability ``p`` if each keeps with p ** (1 / (b * b)).
    So the largest draw of these corners decides.
    """
    assert spec.span is not None
    channels, height, width = shape
    corners = (channels, height + spec.span - 1, width + spec.span - 1)
    draws: _Draws = _uniform(words(math.prod(corners))).reshape(corners)
    for axis in (1, 2):  # a square is dealt with as a row of columns: 2 b steps a neuron, not b * b
        draws = np.maximum.reduce(np.lib.stride_tricks.sliding_window_view(draws, spec.span, axis=axis), axis=-1)
    return draws


def _nm(spec: MaskSpec, shape: _Shape, words: _Words) -> _Draws:
    """The rank of a draw among the m consecutive channels at its position: the n smallest are kept.

    The last group is drawn whole and cut, so that its channels too are kept with probability ``p`` = n / m.
    """
    assert spec.span is not None
    channels, height, width = shape
    drawn = (math.ceil(channels / spec.span), spec.span, height, width)
    order = np.argsort(words(math.prod(drawn)).reshape(drawn), axis=1, kind="stable")
    ranks = np.empty(drawn, dtype=np.float64)
    np.put_along_axis(ranks, order, np.arange(spec.span, dtype=np.float64)[:, None, None], axis=1)
    return ranks.reshape(-1, height, width)[:channels]


# mode -> its function. What it returns is expanded to (C, H, W): a dimension of 1 is drawn once for all.
_MODES: dict[Mode, Callable[[MaskSpec, _Shape, _Words], _Draws]] = {
    "neuron": _neuron,
    "channel": _channel,
    "shared": _shared,
    "hole": _hole,
    "nm": _nm,
}


def _entries(spec: MaskSpec, drawn: _Shape, words: _Words) -> _Draws:
    rule = _places_from_the_top if spec.sampling == "exact" else _uniform
    return rule(words(math.prod(drawn))).reshape(drawn)


def _uniform(raw: npt.NDArray[np.uint64]) -> _Draws:
    # The top 53 bits are a uniform number u in [0, 1) that float64 holds exactly, so u < p is exact too.
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _places_from_the_top(raw: npt.NDArray[np.uint64]) -> _Draws:
    """The place of each draw, 0 for the largest: under the exact rule the smallest draws die first."""
    places = np.empty(raw.size, dtype=np.float64)
    order = np.argsort(raw, kind="stable")  # stable: equal draws fall to the lower index
    places[order] = np.arange(raw.size - 1, -1, -1)
    return places
