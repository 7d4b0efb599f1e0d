"""The paper's variants of a network, by the labels of its tables: ``build_variant("0.3-Bottom")``.

A label is built from: ``p-Bottom`` and ``p-Top`` (p is the keep probability), and at most one of ``DC`` (defective
channels), ``SM`` (one mask shared by all channels), ``x2`` (the defective blocks twice as wide) and ``EN`` (an
ensemble of five networks with different masks). "Standard" has no masks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import timm
from torch import nn

from dcn_plugin.errors import SpecError

__all__ = ["VARIANTS", "Variant", "build_variant", "paper_variant"]

_ABLATED = "resnet18_cifar"  # the network of the authors' ablations
_PART = re.compile(r"(\d*\.?\d+)-(Bottom|Top)")


@dataclass(frozen=True)
class Variant:
    """What a row label of the paper's tables says.

    Args:
        bottom: keep probability where the paper masks the network's bottom; None: no masks there.
        top: keep probability of the top half of the blocks; None: no masks there.
        kind: "neuron" (independent masks), "channel" (DC), "shared" (SM) or "wide" (x2).
        members: networks with different masks and initial weights whose mean logits count: 1, or 5 (EN).

    Raises:
        SpecError: a keep probability is not in (0, 1], or the parts do not go together.
    """

    bottom: float | None = None
    top: float | None = None
    kind: Literal["neuron", "channel", "shared", "wide"] = "neuron"
    members: Literal[1, 5] = 1

    def __post_init__(self) -> None:
        for p in (self.bottom, self.top):
            if p is not None and not 0 < p <= 1:
                raise SpecError("A keep probability is not usable.", p, "a number in (0, 1]")
        if self.kind != "neuron" and (self.bottom is None or self.top is not None):
            raise SpecError(f"{self.kind!r} speaks of masks on the bottom alone.", self, "bottom=p and top=None")

    @property
    def masked(self) -> bool:
        """Whether the network carries masks: a standard one and one with fewer channels (DC) do not."""
        return self.kind != "channel" and (self.bottom is not None or self.top is not None)

    def options(self, net: str = _ABLATED, *, width: int = 64) -> dict[str, Any]:
        """What to build: arguments of ``timm.create_model``, its ``model_name`` among them.

        Args:
            net: one of the networks of :mod:`dcn_plugin.models.paper_nets`, its tag included if it is not "cifar10".
            width: channels of its first stage.

        Raises:
            SpecError: the paper has this variant for ``resnet18_cifar`` only.
        """
        if net.partition(".")[0] != _ABLATED and (self.top is not None or self.kind in ("channel", "wide")):
            raise SpecError(f"This variant is not defined for {net}.", self, f"net={_ABLATED!r}")
        arguments: dict[str, Any] = {"model_name": f"defective_{net}" if self.masked else net, "width": width}
        if self.kind == "channel":
            assert self.bottom is not None
            widths = (math.ceil(round(self.bottom * c, 9)) for c in (width, width, 2 * width))
            arguments |= {"widths": (*widths, 4 * width, 8 * width), "project_first": True}
        if self.kind == "wide":
            arguments |= {"widths": tuple(width * c for c in (2, 2, 4, 4, 8)), "project_first": True}
        if self.kind == "shared":
            arguments["mode"] = "shared"
        if self.masked and self.top is None:
            arguments |= {"blocks": "paper", "p": self.bottom}
        elif self.masked and self.bottom is None:
            arguments |= {"blocks": "top", "p": self.top}
        elif self.masked:
            arguments |= {"blocks": "all", "p": {i: self.bottom if i < 3 else self.top for i in range(5)}}
        return arguments


_PS = (0.7, 0.5, 0.3)
VARIANTS: dict[str, Variant] = {
    "Standard": Variant(),
    **{f"{p:g}-Bottom": Variant(p) for p in (*_PS, 0.25, 0.2, 0.15, 0.1, 0.05)},
    **{f"{p:g}-Top": Variant(top=p) for p in _PS},
    **{
        f"{p:g}-Bottom, {q:g}-Top": Variant(p, q)
        for p, q in ((0.5, 0.5), (0.7, 0.7), (0.7, 0.3), (0.3, 0.3), (0.3, 0.7))
    },
    **{f"{p:g}-Bottom DC": Variant(p, kind="channel") for p in (0.5, 0.3, 0.1)},
    **{f"{p:g}-Bottom SM": Variant(p, kind="shared") for p in (0.5, 0.3, 0.1)},
    **{f"{p:g}-Bottom x2": Variant(p, kind="wide") for p in (0.5, 0.3, 0.1)},
    "Standard EN": Variant(members=5),
    **{f"{p:g}-Bottom EN": Variant(p, members=5) for p in (*_PS, 0.1)},
}
"""The rows of tables 14 to 18, in their order; the other tables have some of them."""

_KINDS: dict[str, dict[str, Any]] = {
    "DC": {"kind": "channel"},
    "SM": {"kind": "shared"},
    "x2": {"kind": "wide"},
    "EN": {"members": 5},
}
# As the tables of the paper, or the files with their numbers, have it.
_SPELT = {
    "channel (DC)": "DC",
    "shared (SM)": "SM",
    "x2 width": "x2",
    "Standard ensemble of 5 (EN)": "Standard EN",
    "Standard CNN": "Standard",
    "standard": "Standard",
}


def paper_variant(label: str) -> Variant:
    """Read a row label; keep probabilities that the paper does not have are understood too.

    Args:
        label: a key of :data:`VARIANTS`, or as ``recipes/paper_numbers`` spells it ("0.5-Bottom channel (DC)*").

    Raises:
        SpecError: the label says no variant.
    """
    short = label.strip().rstrip("*")
    for spelt, name in _SPELT.items():
        short = short.replace(spelt, name)
    if short in VARIANTS:
        return VARIANTS[short]
    body, _, kind = short.rpartition(" ")
    if kind not in _KINDS:
        body, kind = short, ""
    matches = [_PART.fullmatch(part.strip()) for part in body.split(",")]
    p = {match[2]: float(match[1]) for match in matches if match}
    if not p or len(p) < len(matches):
        raise SpecError(
            "This is no variant of the paper.",
            label,
            "'Standard', 'p-Bottom', 'p-Top', 'p-Bottom, p-Top', 'p-Bottom DC' (or SM, x2, EN)",
        )
    return Variant(p.get("Bottom"), p.get("Top"), **_KINDS.get(kind, {}))


def build_variant(
    variant: Variant | str, net: str = _ABLATED, *, width: int = 64, seed: int = 0, **timm_options: Any
) -> nn.Module:
    """Build one network of a variant; of an ensemble (``members`` > 1) one member.

    Args:
        variant: itself, or its label.
        net: one of the networks of :mod:`dcn_plugin.models.paper_nets`; for MNIST "resnet18_cifar.mnist" and so on.
        width: channels of its first stage; 64 is the paper's.
        seed: of the masks. The initial weights come from PyTorch's global generator, as in every module.
        timm_options: more arguments of ``timm.create_model``; ``sampling`` only where there are masks.

    Returns:
        What ``timm.create_model`` makes: defective if the variant has masks.

    Raises:
        SpecError: the label is unknown, or the paper has this variant for ``resnet18_cifar`` only.

    Source: paper, section 4.2, appendix A.10; the authors' code (docs: concepts/authors-code).
    """
    row = paper_variant(variant) if isinstance(variant, str) else variant
    options = row.options(net, width=width)
    if row.masked:
        options["seed"] = seed
    return timm.create_model(**{**options, **timm_options})
