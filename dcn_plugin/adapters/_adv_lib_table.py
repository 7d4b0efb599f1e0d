"""What is known about each minimum-norm attack of adv-lib, read from its source (0.2.8), and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.adapters._foreign import Option
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count, is_number, plain
from dcn_plugin.support.suggestions import closest

__all__ = ["KNOWN", "Known", "Norm", "look_up", "resolve_options"]

Norm = str
#: (probe, images, labels, norm, options) -> adversarial images.
Call = Callable[[nn.Module, Tensor, Tensor, float, Mapping[str, Any]], Tensor]

# adv-lib names its arguments by Greek letters, which no command line likes.
ALPHA, GAMMA, TAU = "\N{GREEK SMALL LETTER ALPHA}", "\N{GREEK SMALL LETTER GAMMA}", "\N{GREEK SMALL LETTER TAU}"


@dataclass(frozen=True)
class Known:
    """One attack of adv-lib.

    Args:
        year: of its publication.
        source: its paper.
        norms: that it minimises.
        call: runs it.
        options: name -> default; adv-lib's, but for what the attack's docstring says.
        min_classes: of the model; its loss compares that many logits.
        least_steps: it divides by fewer.
        random: it draws.
    """

    year: int
    source: str
    norms: tuple[Norm, ...]
    call: Call
    options: Mapping[str, Option]
    min_classes: int = 2
    least_steps: int = 1
    random: bool = False


def _ddn(model: nn.Module, images: Tensor, labels: Tensor, norm: float, options: Mapping[str, Any]) -> Tensor:
    from adv_lib.attacks import ddn

    settings = {"steps": options["steps"], "init_norm": options["init_norm"], "levels": options["levels"] or None}
    adversarial: Tensor = ddn(model, images, labels, **settings, **{GAMMA: options["gamma"]})
    return adversarial


def _alma(model: nn.Module, images: Tensor, labels: Tensor, norm: float, options: Mapping[str, Any]) -> Tensor:
    from adv_lib.attacks import alma

    greek = {ALPHA: options["alpha"], GAMMA: options["gamma"], TAU: options["tau"]}
    adversarial: Tensor = alma(
        model,
        images,
        labels,
        num_steps=options["steps"],
        lr_init=options["step_size"],
        check_steps=options["check_steps"],
        **greek,
    )
    return adversarial


def _pdgd(model: nn.Module, images: Tensor, labels: Tensor, norm: float, options: Mapping[str, Any]) -> Tensor:
    from adv_lib.attacks import pdgd, pdpgd

    settings = {key: options[key] for key in ("primal_lr", "dual_lr", "dual_ratio_init")}
    settings["num_steps"] = options["steps"]
    adversarial: Tensor = (
        pdgd(model, images, labels, **settings)
        if norm == 2
        else pdpgd(model, images, labels, norm=math.inf, **settings)
    )
    return adversarial


def _fmn(model: nn.Module, images: Tensor, labels: Tensor, norm: float, options: Mapping[str, Any]) -> Tensor:
    from adv_lib.attacks import fmn

    greek = {f"{ALPHA}_init": options["step_size"], f"{GAMMA}_init": options["gamma"]}
    adversarial: Tensor = fmn(model, images, labels, norm=norm, steps=options["steps"], **greek)
    return adversarial


def _apgd(model: nn.Module, images: Tensor, labels: Tensor, norm: float, options: Mapping[str, Any]) -> Tensor:
    from adv_lib.attacks.auto_pgd import minimal_apgd

    farthest = 1.0 if norm == math.inf else math.sqrt(images[0].numel())
    adversarial: Tensor = minimal_apgd(
        model,
        images,
        labels,
        norm=norm,
        max_eps=(options["radius"] or farthest) / 2,  # its first ball; it goes on to one of twice the radius
        binary_search_steps=options["searches"],
        n_iter=options["steps"],
        loss_function=options["loss"],
    )
    return adversarial


_BOTH = ("L2", "Linf")

KNOWN: Mapping[str, Known] = {
    "DDN": Known(
        2019,
        "Rony et al., arXiv 1811.09600",
        ("L2",),
        _ddn,
        {"steps": 100, "gamma": 0.05, "init_norm": 1.0, "levels": 0},
    ),
    "ALMA": Known(
        2021,
        "Rony et al., arXiv 2011.11857",
        ("L2",),
        _alma,
        {"steps": 1000, "step_size": 0.1, "alpha": 0.9, "gamma": 1.2, "tau": 0.95, "check_steps": 10},
        min_classes=3,
    ),
    "PDGD": Known(
        2021,
        "Matyasko and Chau, arXiv 2106.01538",
        _BOTH,
        _pdgd,
        {"steps": 500, "primal_lr": 0.1, "dual_lr": 0.1, "dual_ratio_init": 0.01},
        least_steps=2,
    ),
    "FMN": Known(2021, "Pintor et al., arXiv 2102.12827", _BOTH, _fmn, {"steps": 100, "step_size": 1.0, "gamma": 0.05}),
    "APGD": Known(
        2020,
        "Croce and Hein, arXiv 2003.01690, within a bisection over eps",
        _BOTH,
        _apgd,
        {"steps": 20, "searches": 12, "radius": 0.0, "loss": "dlr"},
        min_classes=3,
        random=True,
    ),
}

_REFUSED = {
    "TR": "in L2 it returns images that the network still has right (findings/); take DDN, or FMN in L-inf",
    "CW": "use dcn_plugin.attacks.CW",
    "FAB": 'use TorchAttack("FAB") of dcn_plugin.adapters.torchattacks',
}

#: Option -> whether a number is in its range, and how an error says that.
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "alpha": (lambda value: 0 <= value < 1, "a number in [0, 1)"),
    "levels": (lambda value: value == 0 or 2 <= value <= 65536, "0 (no rounding), or an int in 2 .. 65536"),
    "radius": (lambda value: 0 <= value < math.inf, "0 (the diagonal of the image), or a finite number > 0"),
    "tau": (lambda value: 0 < value <= 1, "a number in (0, 1]"),
    "dual_ratio_init": (lambda value: 0 < value <= 1, "a number in (0, 1]"),
}
_POSITIVE = (lambda value: 0 < value < math.inf, "a finite number > 0")


def look_up(name: str) -> Known:
    """What is known about an attack.

    Raises:
        SpecError: it is not in the table.
    """
    if isinstance(name, str) and name in KNOWN:
        return KNOWN[name]
    fix = _REFUSED.get(str(name)) or closest(name, KNOWN)
    raise SpecError("This attack of adv-lib is not run here.", name, ", ".join(KNOWN), fix)


def resolve_options(name: str, given: Mapping[str, Option]) -> dict[str, Option]:
    """All options of an attack, its defaults included.

    Raises:
        SpecError: an option does not exist, or its value has the wrong type or is out of range.
    """
    entry = look_up(name)
    given = {key: plain(value) for key, value in given.items()}
    for key, value in given.items():
        if key not in entry.options:
            options = ", ".join([*entry.options, "norm", "seed", "batch"])
            raise SpecError(f"adv-lib's {name} has no such option.", key, options, closest(key, entry.options))
        _check(name, key, value, entry)
    return dict(entry.options) | given


def _check(name: str, key: str, value: Any, entry: Known) -> None:
    if key == "loss":
        fits, allowed = value in ("dlr", "ce"), "'dlr', 'ce'"
    elif isinstance(entry.options[key], int) and key not in _RANGES:
        least = entry.least_steps if key == "steps" else 1
        fits, allowed = is_count(value, least=least), f"an int >= {least}"
    else:
        within, allowed = _RANGES.get(key, _POSITIVE)
        whole = not isinstance(entry.options[key], int) or is_count(value, least=0)
        fits = is_number(value) and whole and within(value)
    if not fits:
        raise SpecError(f"{key} of adv-lib's {name} is not usable.", value, allowed)


NORMS: Mapping[Norm, float] = {"L2": 2.0, "Linf": torch.inf}
"""Name of a norm here -> adv-lib's."""
