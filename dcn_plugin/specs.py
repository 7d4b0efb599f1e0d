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
    "MASK_OPTIONS",
    "MASK_SCHEME",
    "DefectSpec",
    "Layout",
    "MaskOrigin",
    "MaskSpec",
    "Masks",
    "Mode",
    "Sampling",
    "SiteSpec",
    "Slot",
    "check_chw",
    "freeze_p",
    "mask_specs",
    "p_of",
    "plain_number",
]

Mode = Literal["neuron", "channel", "shared", "hole", "nm"]
Sampling = Literal["bernoulli", "exact"]
Slot = Literal["norm", "norm_act", "conv"]
Layout = Literal["NCHW", "NHWC", "NLC"]
MaskOrigin = Literal["sampled", "loaded"]

MASK_SCHEME = 1
"""Version of the rule that turns (seed, site, shape, spec) into bits. A new rule gets a new number."""

_MAX_SEED = 2**64 - 1
_MAX_SPAN = 256

# The modes that take a span, and what it is the number of.
_SPANS: dict[str, str] = {"hole": "pixels on a side of a hole", "nm": "channels in a group"}


@dataclass(frozen=True)
class MaskSpec:
    """How one mask is drawn.

    Args:
        p: keep probability in (0, 1]; the share of neurons that stay. 1 keeps all.
        mode: "neuron" draws one entry a channel and position (the paper's layer), "channel" one a channel,
            "shared" one a position for all channels (the paper's ablations DC and SM). Beyond the paper: "hole"
            silences square holes, in each channel its own; they may overlap, and the border cuts them. "nm" keeps, at
            each position, n of every m consecutive channels; the last channels are a cut group where m does not
            divide their number. In every mode each neuron is kept with probability p, at the border as elsewhere.
        sampling: "bernoulli" draws entries independently (the paper's text), "exact" zeroes exactly
            ``round((1 - p) * N)`` of the N drawn entries (the paper's code zeroes the floor of it). Holes and groups
            are drawn independently of each other; "exact" is not defined for them.
        seed: 0 .. 2**64 - 1; together with the site's ordinal it fixes every bit.
        span: 1 .. 256, for "hole" and "nm" only, which need it: pixels on a side of a hole; m, the channels in a
            group. n is ``p * span``, which has to be a whole number: p=0.25, span=4 is the pattern 1:4.

    Raises:
        SpecError: a value is not allowed, or two do not go together.

    Example:
        >>> dcn.MaskSpec(p=0.25, mode="nm", span=4).mode_text
        'nm 1:4'

    Source: paper, section 3.1, eq. (3)-(5); section 4.2 for its modes.
    """

    p: float = 0.3
    mode: Mode = "neuron"
    sampling: Sampling = "bernoulli"
    seed: int = 0
    span: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _check_keep_probability(self.p))
        _check_choice("mode", self.mode, get_args(Mode))
        _check_choice("sampling", self.sampling, get_args(Sampling))
        object.__setattr__(self, "seed", plain_number(self.seed))
        object.__setattr__(self, "span", plain_number(self.span))
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed <= _MAX_SEED:
            raise SpecError("The seed is not usable.", self.seed, "an int in [0, 2**64)", "pass e.g. seed=0")
        _check_span(self)

    @property
    def pattern(self) -> tuple[int, int]:
        """(n, m) of mode "nm": of every m consecutive channels n are kept.

        Raises:
            SpecError: the mode is another.
        """
        if self.mode != "nm" or self.span is None:
            raise SpecError("Only a mask of mode 'nm' has a pattern n:m.", self.mode, "mode='nm'")
        return round(self.p * self.span), self.span

    @property
    def mode_text(self) -> str:
        """``mode`` and ``span`` as a person would write them: "neuron", "hole 3x3", "nm 1:4"."""
        if self.mode == "nm":
            n, m = self.pattern
            return f"{self.mode} {n}:{m}"
        return self.mode if self.span is None else f"{self.mode} {self.span}x{self.span}"


MASK_OPTIONS = tuple(field.name for field in dataclasses.fields(MaskSpec))
"""How a mask is drawn, as the keywords of :func:`dcn_plugin.defectify` name it: p, mode and so on."""

Masks = MaskSpec | Mapping[str | int, MaskSpec]
"""How all masks of a network are drawn; or those of each block, by number, name or glob: they differ in p alone."""


@dataclass(frozen=True)
class SiteSpec:
    """One place in a network that carries a mask.

    Args:
        name: module path of the mask's owner, the norm (or the convolution, where no norm follows).
        conv: module path of the convolution that feeds it.
        ordinal: place of that convolution among all executed convolutions of the full model, from 0; a norm that no
            convolution owns comes after all of them (see :mod:`dcn_plugin.surgery.sites`).
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
        span: see :class:`MaskSpec`.

    Example:
        >>> spec = dcn.defect_spec(dcn.defectify(timm.create_model("resnet18"), input_size=(3, 64, 64)))
        >>> len(spec.sites), spec == dcn.DefectSpec.from_json(spec.to_json())
        (10, True)
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
    span: int | None = None

    def to_json(self) -> str:
        """Serialise to JSON text; :meth:`from_json` is the exact inverse."""
        # A span that is not there is not written: the text of modes without one is what it was before there were spans.
        raw = dataclasses.asdict(self, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})
        return json.dumps(raw, sort_keys=True)

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
    def options(self) -> dict[str, Any]:
        """``blocks`` and the :data:`MASK_OPTIONS`, as keyword arguments of :func:`dcn_plugin.defectify`."""
        options = {name: getattr(self, name) for name in ("blocks", *MASK_OPTIONS)}
        return {**options, "p": dict(self.p)} if isinstance(self.p, tuple) else options

    @property
    def p_text(self) -> str:
        """``p`` as a person would write it."""
        return f"{self.p:g}" if isinstance(self.p, float) else ", ".join(f"{b}: {p:g}" for b, p in self.p)


def plain_number(value: Any) -> Any:
    """The Python number that a NumPy scalar or a 0-dim array or tensor holds; anything else as it is."""
    if not isinstance(value, int | float) and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def check_chw(size: Any, *, error: type[InputSizeError | MaskShapeError] = InputSizeError) -> tuple[int, int, int]:
    """Check that ``size`` is (C, H, W) with three positive integers, of Python or of NumPy.

    Raises:
        InputSizeError, MaskShapeError: it is not (which of the two, ``error`` says).
    """
    if getattr(size, "ndim", None) == 1 and hasattr(size, "tolist"):
        size = size.tolist()  # an array or a tensor
    if isinstance(size, tuple | list):
        size = tuple(map(plain_number, size))
    if (
        not isinstance(size, tuple | list)
        or len(size) != 3
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in size)
    ):
        fix = "pass e.g. (3, 224, 224)"
        if isinstance(size, tuple) and len(size) == 4:
            fix = f"leave the batch size out: {size[1:]}"
        raise error("A size must be given as (C, H, W).", size, "three integers >= 1", fix)
    return (size[0], size[1], size[2])


def _check_keep_probability(p: object) -> float:
    p = plain_number(p)
    if isinstance(p, bool) or not isinstance(p, int | float) or not math.isfinite(p) or not 0 < p <= 1:
        raise SpecError(
            "The keep probability is not usable.",
            p,
            "a number in (0, 1]",
            "p is the share of neurons that is KEPT; the paper uses 0.5, 0.3 and 0.1",
        )
    return float(p)


def _check_span(spec: MaskSpec) -> None:
    mode, span = spec.mode, spec.span
    if mode not in _SPANS:
        if span is not None:
            raise SpecError(
                f"mode={mode!r} takes no span.", span, f"a span with the modes {', '.join(map(repr, _SPANS))}"
            )
        return
    if isinstance(span, bool) or not isinstance(span, int) or not 1 <= span <= _MAX_SPAN:
        raise SpecError(
            f"mode={mode!r} needs a span, the number of {_SPANS[mode]}.",
            span,
            f"an int in [1, {_MAX_SPAN}]",
            "pass e.g. span=3" if mode == "hole" else "pass e.g. p=0.25, span=4 for the pattern 1:4",
        )
    if spec.sampling != "bernoulli":
        raise SpecError(
            f"mode={mode!r} has no total that could be drawn exactly: "
            + ("holes overlap." if mode == "hole" else "every group has its exact count already."),
            spec.sampling,
            "sampling='bernoulli'",
        )
    if mode == "nm":
        n = max(1, round(spec.p * span))
        if abs(spec.p * span - n) > 1e-9 * span:
            raise SpecError(
                f"The keep probability does not keep a whole number of every {span} channels.",
                spec.p,
                f"n / {span} with a whole n",
                f"pass e.g. p={n}/{span}, or another span",
            )


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise SpecError(f"Unknown {name}.", value, ", ".join(map(repr, allowed)))


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(v) for v in value) if isinstance(value, list) else value


def mask_specs(p: float | Mapping[str | int, float], **options: Any) -> Masks:
    """Validate the options of masks as :func:`dcn_plugin.defectify` takes them.

    Args:
        p: keep probability, or a mapping block -> p.
        options: the other fields of :class:`MaskSpec`, the same for all blocks.

    Raises:
        SpecError: an option is not allowed, two of them do not go together, or the mapping is empty.
    """
    if not isinstance(p, Mapping):
        return MaskSpec(p, **options)
    if not p:
        raise SpecError("The mapping block -> p is empty.", {}, "at least one block", "pass e.g. p={'layer1': 0.3}")
    return {_as_block(block): MaskSpec(value, **options) for block, value in p.items()}


def freeze_p(
    p: float | Mapping[str | int, float], *, like: MaskSpec | None = None
) -> float | tuple[tuple[str | int, float], ...]:
    """The keep probability of a :class:`DefectSpec`: ``p`` as :func:`mask_specs` takes it, validated and hashable.

    Args:
        p: keep probability, or a mapping block -> p.
        like: the other options of the masks, which may restrict p (a pattern n:m does).

    Raises:
        SpecError: as :func:`mask_specs` does.
    """
    return p_of(mask_specs(p, **{name: getattr(like or MaskSpec(), name) for name in MASK_OPTIONS if name != "p"}))


def p_of(masks: Masks) -> float | tuple[tuple[str | int, float], ...]:
    """What a :class:`DefectSpec` says of the keep probability of its masks."""
    return masks.p if isinstance(masks, MaskSpec) else tuple((block, mask.p) for block, mask in masks.items())


def _as_block(block: object) -> str | int:
    block = plain_number(block)
    if isinstance(block, bool) or not isinstance(block, str | int):
        raise SpecError("The mapping block -> p has a block that is none.", block, "block numbers, names or globs")
    return block
