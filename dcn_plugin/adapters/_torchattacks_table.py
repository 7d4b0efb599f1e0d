"""What is known about each attack of torchattacks, read from its source (3.5.1): norm, randomness, limits, options."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torchattacks

from dcn_plugin.errors import SpecError

__all__ = ["KNOWN", "Known", "Norm", "Option", "look_up", "resolve_options"]

Norm = Literal["Linf", "L2"]
Option = float | int | str | bool


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
#: Options whose default is an int although they are real numbers.
_REAL = ("scale", "nsig")


def look_up(name: str) -> Known:
    """What is known about an attack.

    Raises:
        SpecError: it is not in the table.
    """
    if isinstance(name, str) and name in KNOWN:
        return KNOWN[name]
    close = difflib.get_close_matches(str(name).upper(), {key.upper(): key for key in KNOWN}, n=1)
    meant = [key for key in KNOWN if key.upper() in close]
    fix = _REFUSED.get(str(name)) or (f"did you mean {meant[0]!r}" if meant else None)
    raise SpecError("This attack of torchattacks is not run here.", name, ", ".join(KNOWN), fix)


def resolve_options(name: str, given: Mapping[str, Option]) -> dict[str, Option]:
    """All options of an attack, the defaults of its constructor included.

    Raises:
        SpecError: an option does not exist, or its value has the wrong type or is out of range.
    """
    parameters = inspect.signature(getattr(torchattacks, name).__init__).parameters
    defaults: dict[str, Option] = {key: p.default for key, p in parameters.items() if key not in _OWN}
    for key, value in given.items():
        if key not in defaults:
            close = difflib.get_close_matches(key, defaults, n=1)
            raise SpecError(
                f"torchattacks' {name} has no such option.",
                key,
                ", ".join([*defaults, "seed"]),
                f"did you mean {close[0]!r}" if close else None,
            )
        _check_option(name, key, value, defaults[key])
    return defaults | dict(given)


def _check_option(name: str, key: str, value: object, default: Option) -> None:
    choices = KNOWN[name].choices.get(key)
    if choices is not None:
        fits, allowed = value in choices, ", ".join(map(repr, choices))
    elif isinstance(default, bool):
        fits, allowed = isinstance(value, bool), "True, False"
    elif isinstance(default, int) and key not in _REAL:
        fits, allowed = isinstance(value, int) and not isinstance(value, bool) and value >= 1, "an int >= 1"
    else:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits, allowed = number and math.isfinite(value) and value >= 0, "a finite number >= 0"  # type: ignore[arg-type, operator]
    if not fits:
        raise SpecError(f"{key} of torchattacks' {name} is not usable.", value, allowed)
