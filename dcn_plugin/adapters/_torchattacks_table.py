"""What is known about each attack of torchattacks, read from its source (3.5.1): norm, randomness, limits, options."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torchattacks

from dcn_plugin.adapters._foreign import Option
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count, is_number, plain
from dcn_plugin.support.suggestions import closest

__all__ = ["KNOWN", "Known", "Norm", "look_up", "resolve_options"]

Norm = Literal["Linf", "L2"]


@dataclass(frozen=True)
class Known:
    """One attack of torchattacks.

    Args:
        norm: of its ball, or None where an option says.
        random: whether it draws; "start" where its option ``random_start`` says.
        correct_only: it asks only about images that the model classifies correctly, and about fewer and fewer
            of them; the others come back clean.
        rgb_only: its kernel is made for three channels.
        square_only: it resizes images to squares.
        float32_only: it mixes float32 into its computation.
        min_classes: of the model; its loss compares that many of the largest logits.
        choices: option -> values it may have.
    """

    norm: Norm | None
    random: bool | Literal["start"] = False
    correct_only: bool = False
    rgb_only: bool = False
    square_only: bool = False
    float32_only: bool = False
    min_classes: int = 2
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def draws(self, options: Mapping[str, Option]) -> bool:
        """Whether it draws with these options."""
        return bool(options["random_start"]) if self.random == "start" else self.random

    def classes_needed(self, options: Mapping[str, Option]) -> int:
        """How many classes the model must have with these options."""
        # The untargeted DLR loss divides by the gap between the first and the third logit.
        return 3 if options.get("loss") == "dlr" or options.get("version") == "rand" else self.min_classes


_NORMS = {"norm": ("Linf", "L2")}
_NOISE = {"noise_type": ("guassian", "uniform")}  # the first is spelled so in torchattacks

KNOWN: Mapping[str, Known] = {
    "FGSM": Known("Linf"),
    "BIM": Known("Linf"),
    "RFGSM": Known("Linf", random=True),
    "FFGSM": Known("Linf", random=True),
    "PGD": Known("Linf", random="start"),
    "EOTPGD": Known("Linf", random="start"),
    "TPGD": Known("Linf", random=True),
    "UPGD": Known("Linf", random="start", choices={"loss": ("ce", "dlr", "margin")}),
    "Jitter": Known("Linf", random=True),
    "PGDRS": Known("Linf", random=True, float32_only=True, choices=_NOISE),
    "MIFGSM": Known("Linf"),
    "NIFGSM": Known("Linf"),
    "SINIFGSM": Known("Linf"),
    "VMIFGSM": Known("Linf", random=True),
    "VNIFGSM": Known("Linf", random=True),
    "DIFGSM": Known("Linf", random=True, square_only=True),
    "TIFGSM": Known(
        "Linf",
        random=True,
        square_only=True,
        rgb_only=True,
        float32_only=True,
        choices={"kernel_name": ("gaussian", "linear", "uniform")},
    ),
    "APGD": Known(None, random=True, correct_only=True, choices=_NORMS | {"loss": ("ce", "dlr")}),
    "APGDT": Known(None, random=True, correct_only=True, min_classes=4, choices=_NORMS),
    # Its third norm, L1, fails in torchattacks.
    "FAB": Known(None, random=True, correct_only=True, float32_only=True, choices=_NORMS),
    "Square": Known(None, random=True, correct_only=True, choices=_NORMS | {"loss": ("margin", "ce")}),
    "AutoAttack": Known(
        None,
        random=True,
        correct_only=True,
        float32_only=True,
        min_classes=4,
        choices=_NORMS | {"version": ("standard", "plus", "rand")},
    ),
    "PGDL2": Known("L2", random="start"),
    "PGDRSL2": Known("L2", random=True, float32_only=True, choices=_NOISE),
}

#: Attacks that are left out for a reason of their own.
_REFUSED = {
    "CW": "use dcn_plugin.attacks.CW: torchattacks' CW stops as a batch, leaves pixels at 0 and 1 where they are, and "
    "is wrong for negative logits",
    "MultiAttack": "run the attacks one by one",
    "LGV": "run the attack it wraps",
}

#: Options that the runner sets itself (`seed`, through its own option), or that change nothing but what is printed.
_OWN = ("self", "model", "seed", "verbose")
#: Options of ours: torchattacks' AutoAttack runs its APGD, APGD-T and FAB-T with 10 steps, published are 100.
_ADDED: Mapping[str, Mapping[str, Option]] = {"AutoAttack": {"steps": 100}}
#: Options whose default is an int although they are real numbers.
_REAL = ("scale", "nsig")

_POSITIVE = (lambda value: value > 0, "a finite number > 0")
_SHARE = (lambda value: 0 <= value <= 1, "a number in [0, 1]")
_PART = (lambda value: 0 < value <= 1, "a number in (0, 1]")
#: Option, or attack and option -> which numbers or ints it takes beyond its type, and how an error says that. Outside
#: of these torchattacks fails half-way, or does nothing, or does what another value does.
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "alpha": _POSITIVE,
    "diversity_prob": _SHARE,
    "eps_for_division": _POSITIVE,  # a gradient of zero is divided by it
    "p_init": _PART,
    "resize_rate": (lambda value: 0 < value <= 4 and value != 1, "a number in (0, 4] other than 1"),
    "rho": _PART,
    "scale": _POSITIVE,
    "FAB.alpha_max": _SHARE,
    "FAB.beta": _PART,
    "FAB.eta": _POSITIVE,
    # Far from its centre a normal density is 0 in float64, and so is the whole of a small kernel.
    "nsig": (lambda value: 0 < value <= 20, "a number in (0, 20]"),
    # Copies are divided by 2**i in int64.
    "m": (lambda value: value <= 63, "an int in 1 .. 63"),
    # One of them is the true class.
    "n_classes": (lambda value: value >= 2, "an int >= 2"),
}


def look_up(name: str) -> Known:
    """What is known about an attack.

    Raises:
        SpecError: it is not in the table.
    """
    if isinstance(name, str) and name in KNOWN:
        return KNOWN[name]
    fix = _REFUSED.get(str(name)) or closest(name, KNOWN)
    raise SpecError("This attack of torchattacks is not run here.", name, ", ".join(KNOWN), fix)


def resolve_options(name: str, given: Mapping[str, Option]) -> dict[str, Option]:
    """All options of an attack, the defaults of its constructor included.

    A step that is not given follows eps: ``alpha`` is torchattacks' default in the ratio of eps to its default there,
    and at least eps / steps, so that the steps reach the edge of the ball.

    Raises:
        SpecError: an option does not exist, or its value has the wrong type or is out of range.
    """
    parameters = inspect.signature(getattr(torchattacks, name).__init__).parameters
    defaults: dict[str, Option] = {key: p.default for key, p in parameters.items() if key not in _OWN}
    defaults |= _ADDED.get(name, {})
    given = {key: plain(value) for key, value in given.items()}
    for key, value in given.items():
        if key not in defaults:
            options = ", ".join([*defaults, "seed"])
            raise SpecError(f"torchattacks' {name} has no such option.", key, options, closest(key, defaults))
        _check_option(name, key, value, defaults[key])
    resolved = defaults | given
    if "alpha" in defaults and "alpha" not in given:
        resolved["alpha"] = _following_alpha(defaults, float(resolved["eps"]), int(resolved.get("steps", 1)))
    if resolved.get("noise_batch_size", 0) > resolved.get("batch_max", math.inf):  # type: ignore[operator]
        raise SpecError(
            f"noise_batch_size of torchattacks' {name} is not usable: one image with its noise does not fit batch_max.",
            resolved["noise_batch_size"],
            f"an int in 1 .. {resolved['batch_max']}",
        )
    return resolved


def _following_alpha(defaults: Mapping[str, Option], eps: float, steps: int) -> float:
    return max(float(defaults["alpha"]) * (eps / float(defaults["eps"])), eps / steps)


def _check_option(name: str, key: str, value: object, default: Option) -> None:
    choices = KNOWN[name].choices.get(key)
    if choices is not None:
        fits, allowed = value in choices, ", ".join(map(repr, choices))
    elif isinstance(default, bool):
        fits, allowed = isinstance(value, bool), "True, False"
    elif isinstance(default, int) and key not in _REAL:
        fits, allowed = is_count(value, least=1), "an int >= 1"
    else:
        fits, allowed = is_number(value) and math.isfinite(value) and value >= 0, "a finite number >= 0"  # type: ignore[arg-type, operator]
    if fits and (limit := _RANGES.get(f"{name}.{key}", _RANGES.get(key))) is not None:
        within, allowed = limit
        fits = within(value)  # type: ignore[arg-type]
    if not fits:
        raise SpecError(f"{key} of torchattacks' {name} is not usable.", value, allowed)
