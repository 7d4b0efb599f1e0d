"""What a defective network is, in data: validated, frozen, and the same after a trip through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dcn_plugin.errors import InputSizeError, MaskShapeError, SpecError

__all__ = [
    "MASK_SCHEME",
    "DefectSpec",
    "Layout",
    "MaskOrigin",
    "MaskSpec",
    "Mode",
    "Sampling",
    "SiteSpec",
    "Slot",
    "check_chw",
]

Mode = Literal["neuron", "channel", "shared"]
Sampling = Literal["bernoulli", "exact"]
Slot = Literal["norm", "norm_act", "conv"]
Layout = Literal["NCHW", "NHWC", "NLC"]
MaskOrigin = Literal["sampled", "loaded"]

MASK_SCHEME = 1
"""Version of the rule that turns (seed, site, shape, spec) into bits. A new rule gets a new number."""

_MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class MaskSpec:
    """How one mask is drawn.

    Args:
        p: keep probability in (0, 1]; the share of neurons that stay. 1 keeps all.
        mode: "neuron" draws one entry a channel and position (the paper's layer), "channel" one a channel,
            "shared" one a position for all channels (the paper's ablations DC and SM).
        sampling: "bernoulli" draws entries independently (the paper's text), "exact" zeroes exactly
            ``round((1 - p) * N)`` of the N drawn entries (the paper's code zeroes the floor of it).
        seed: 0 .. 2**64 - 1; together with the site's ordinal it fixes every bit.

    Raises:
        SpecError: a value is not allowed.

    Source: paper, section 3.1, eq. (3)-(5); section 4.2 for the modes.
    """

    p: float = 0.3
    mode: Mode = "neuron"
    sampling: Sampling = "bernoulli"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _check_keep_probability(self.p))
        _check_choice("mode", self.mode, get_args(Mode))
        _check_choice("sampling", self.sampling, get_args(Sampling))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= _MAX_SEED:
            raise SpecError("The seed is not usable.", self.seed, "an int in [0, 2**64)", "pass e.g. seed=0")


@dataclass(frozen=True)
class SiteSpec:
    """One place in a network that carries a mask.

    Args:
        name: module path of the mask's owner, the norm (or the convolution, where no norm follows).
        conv: module path of the convolution that feeds it.
        ordinal: place of that convolution among all executed convolutions of the full model, from 0; a norm that no
            convolution owns comes after all of them (see :mod:`dcn_plugin.sites`).
        block: name of the block the mask lies in.
        block_index: number of that block in execution order, 0 = stem.
        shape: (C, H, W) of the masked activation.
        slot: "norm" and "norm_act": between a norm and its (possibly absent) activation; "conv": behind
            a convolution that has no norm.
        layout: memory order of the activation at the mask: "NCHW", "NHWC" or "NLC" (L = H * W).
        mask: how the mask was drawn.
    """

    name: str
    conv: str
    ordinal: int
    block: str
    block_index: int
    shape: tuple[int, int, int]
    slot: Slot
    layout: Layout
    mask: MaskSpec


@dataclass(frozen=True)
class DefectSpec:
    """Everything that makes a network defective: what was asked for, and the sites it led to.

    Args:
        blocks: as it was asked for: "bottom", "top", "all", "paper", or a tuple of numbers and globs.
        p: keep probability, or pairs (block, p).
        mode: see :class:`MaskSpec`.
        sampling: see :class:`MaskSpec`.
        seed: see :class:`MaskSpec`.
        input_size: (C, H, W) of the images the masks were made for.
        sites: the sites in execution order.
        mask_origin: "sampled": the masks are those that the seed gives; "loaded": a state dict brought others.
        mask_scheme: version of the sampling rule.
    """

    blocks: str | tuple[str | int, ...]
    p: float | tuple[tuple[str | int, float], ...]
    mode: Mode
    sampling: Sampling
    seed: int
    input_size: tuple[int, int, int]
    sites: tuple[SiteSpec, ...]
    mask_origin: MaskOrigin = "sampled"
    mask_scheme: int = MASK_SCHEME

    def to_json(self) -> str:
        """Serialise to JSON text; :meth:`from_json` is the exact inverse."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> DefectSpec:
        """Read what :meth:`to_json` wrote.

        Raises:
            SpecError: the text is no such spec, or it was made by an unknown mask scheme.
        """
        try:
            raw = json.loads(text)
            sites = tuple(
                SiteSpec(**{**s, "shape": check_chw(s["shape"]), "mask": MaskSpec(**s["mask"])})
                for s in raw.pop("sites")
            )
            spec = cls(
                **{
                    **raw,
                    "sites": sites,
                    "blocks": _as_tuples(raw["blocks"]),
                    "p": _as_tuples(raw["p"]),
                    "input_size": check_chw(raw["input_size"]),
                }
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SpecError(
                f"This is not the JSON of a DefectSpec ({type(error).__name__}: {error}).",
                text[:80],
                "what DefectSpec.to_json() wrote",
            ) from error
        if spec.mask_scheme != MASK_SCHEME:
            raise SpecError(
                "The masks were sampled by a scheme that this version does not know.",
                spec.mask_scheme,
                f"mask_scheme {MASK_SCHEME}",
                "use the version of dcn-plugin that wrote it",
            )
        return spec

    @property
    def p_text(self) -> str:
        """``p`` as a person would write it."""
        return f"{self.p:g}" if isinstance(self.p, float) else ", ".join(f"{b}: {p:g}" for b, p in self.p)


def check_chw(size: object, *, error: type[InputSizeError | MaskShapeError] = InputSizeError) -> tuple[int, int, int]:
    """Check that ``size`` is (C, H, W) with three positive integers.

    Raises:
        InputSizeError, MaskShapeError: it is not (which of the two, ``error`` says).
    """
    if (
        not isinstance(size, tuple | list)
        or len(size) != 3
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in size)
    ):
        raise error("A size must be given as (C, H, W).", size, "three integers >= 1", "pass e.g. (3, 224, 224)")
    return (size[0], size[1], size[2])


def _check_keep_probability(p: object) -> float:
    if isinstance(p, bool) or not isinstance(p, int | float) or not math.isfinite(p) or not 0 < p <= 1:
        raise SpecError(
            "The keep probability is not usable.",
            p,
            "a number in (0, 1]",
            "p is the share of neurons that is KEPT; the paper uses 0.5, 0.3 and 0.1",
        )
    return float(p)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SpecError(f"Unknown {name}.", value, ", ".join(map(repr, allowed)))


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, list) else value


def freeze_p(p: float | Mapping[str | int, float]) -> float | tuple[tuple[str | int, float], ...]:
    """Validate ``p`` as :func:`dcn_plugin.defectify` takes it, and make it hashable.

    Raises:
        SpecError: a keep probability is not in (0, 1], or the mapping is empty.
    """
    if isinstance(p, Mapping):
        if not p:
            raise SpecError("The mapping block -> p is empty.", {}, "at least one block", "pass e.g. p={'layer1': 0.3}")
        return tuple((block, _check_keep_probability(value)) for block, value in p.items())
    return _check_keep_probability(p)
