"""What is known about each transfer attack of torchattack, read from its source (1.7.2) and checked by tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dcn_plugin.adapters._foreign import Option
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count, is_number, plain
from dcn_plugin.support.suggestions import closest

__all__ = ["KNOWN", "Known", "look_up", "resolve_options"]


@dataclass(frozen=True)
class Known:
    """One transfer attack, within an L-inf ball, untargeted.

    Args:
        year: of its publication.
        source: its paper.
        options: name -> default, torchattack's own, beside eps, steps, alpha and decay, which all have.
        random: it draws.
        mixes: an image's result depends on the others of its piece, not on random numbers alone.
        gradients: options -> gradients an image and step.
        size: (H, W) of the images, where its source fixes them.
        rgb_only: its source fixes three channels.
        classes: it has to be told the number of classes.
        module: what it imports that is not installed with torchattack.
    """

    year: int
    source: str
    gradients: Callable[[Mapping[str, Option]], int]
    options: Mapping[str, Option]
    random: bool = True
    mixes: bool = False
    size: tuple[int, int] | None = None
    rgb_only: bool = False
    classes: bool = False
    module: str | None = None


def _times(*names: str, add: int = 0, factor: int = 1) -> Callable[[Mapping[str, Option]], int]:
    return lambda options: factor * math.prod(int(options[name]) for name in names) + add


#: eps, steps, alpha (None there: eps / steps) and decay of every attack.
SHARED: Mapping[str, Option] = {"eps": 8 / 255, "steps": 10, "alpha": 0.0, "decay": 1.0}

KNOWN: Mapping[str, Known] = {
    "MIFGSM": Known(2018, "Dong et al., arXiv 1710.06081", _times(), {}, random=False),
    "DIFGSM": Known(2019, "Xie et al., arXiv 1803.06978", _times(), {"resize_rate": 0.9, "diversity_prob": 1.0}),
    "Admix": Known(
        2021,
        "Wang et al., arXiv 2102.00436",
        _times("size", factor=5),
        {"portion": 0.2, "size": 3},
        mixes=True,
        classes=True,
    ),
    "VMIFGSM": Known(2021, "Wang and He, arXiv 2103.15571", _times("n", add=1), {"n": 5, "beta": 1.5}),
    "VNIFGSM": Known(2021, "Wang and He, arXiv 2103.15571", _times("n", add=1), {"n": 5, "beta": 1.5}),
    "SSA": Known(
        2022,
        "Long et al., arXiv 2207.05382",
        _times("num_spectrum"),
        {"num_spectrum": 20, "rho": 0.5},
        size=(224, 224),
        rgb_only=True,
    ),
    "GRA": Known(
        2023,
        "Zhu et al., ICCV 2023, Boosting Adversarial Transferability via Gradient Relevance Attack",
        _times("num_neighbors", add=1),
        {"beta": 3.5, "eta": 0.94, "num_neighbors": 20},
    ),
    "BSR": Known(2024, "Wang et al., arXiv 2308.10299", _times("num_scale"), {"num_scale": 20, "num_block": 3}),
    "DeCoWA": Known(
        2024,
        "Lin et al., arXiv 2402.03951",
        _times("num_warping", factor=2),
        {"rho": 0.01, "num_warping": 20, "noise_scale": 2},
        mixes=True,
    ),
    "MuMoDIG": Known(
        2024,
        "Ren et al., arXiv 2412.18844",
        lambda options: (1 + int(options["n_trans"])) * int(options["n_base"]) * int(options["n_interpolate"]),
        {"n_trans": 6, "n_base": 1, "n_interpolate": 1, "region_num": 2, "lambd": 0.65},
        module="kornia",
    ),
}

_MOMENTUM = "its momentum is lost: each step has that of the last gradient alone (findings/); take torchattacks' "
_LAYERS = "it attacks layers that it knows by name in a few networks for 224 pixels"
_WEIGHTS = "it downloads weights of a generator or of VGG-16"
_VIT = "it edits the gradients of four vision transformers"
#: Attacks that are left out, with the reason.
_REFUSED: Mapping[str, str] = {
    "NIFGSM": _MOMENTUM + "NIFGSM",
    "SINIFGSM": _MOMENTUM + "SINIFGSM",
    "TIFGSM": _MOMENTUM + "TIFGSM, or TIFGSM of dcn_plugin.attacks",
    "MIG": "untargeted it raises the accuracy: it climbs the probability of the true class (findings/)",
    "BPA": "it replaces modules of the network when it is made",
    "BFA": "it is made for 1,000 classes, and for layers that it knows by name",
    "L2T": "its transforms are fixed to 224 pixels and to CUDA",
    "SSP": _WEIGHTS,
    **dict.fromkeys(("BIA", "CDA", "LTP", "GAMA"), _WEIGHTS),
    **dict.fromkeys(("DANAA", "DR", "FDA", "FIA", "ILPD", "NAA", "SGM"), _LAYERS),
    **dict.fromkeys(("ATT", "PNAPatchOut", "TGR", "VDC"), _VIT),
    **dict.fromkeys(("FGSM", "PGD", "IFGSM"), "use PGD of dcn_plugin.attacks"),
    "PGDL2": "use PGDL2 of torchattacks",
    "DeepFool": "use MinimumNorm of dcn_plugin.adapters.adv_lib",
    "GeoDA": "use HopSkipJump of dcn_plugin.attacks",
}

_POSITIVE = (lambda value: 0 < value < math.inf, "a finite number > 0")
_SHARE = (lambda value: 0 <= value <= 1, "a number in [0, 1]")
#: Option -> whether a number is in its range, and how an error says that.
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "eps": (lambda value: 0 < value <= 1, "a number in (0, 1]"),
    "alpha": (lambda value: 0 <= value <= 2, "a number in (0, 2], or 0: eps / steps"),
    "decay": (lambda value: 0 <= value < math.inf, "a finite number >= 0"),
    "diversity_prob": _SHARE,
    "portion": _SHARE,
    "rho": _SHARE,
    "lambd": _SHARE,
    "eta": (lambda value: 0 < value <= 1, "a number in (0, 1]"),
    "resize_rate": (lambda value: 0 < value < 1, "a number in (0, 1)"),
}


def look_up(name: str) -> Known:
    """What is known about an attack.

    Raises:
        SpecError: it is not in the table.
    """
    if isinstance(name, str) and name in KNOWN:
        return KNOWN[name]
    fix = _REFUSED.get(str(name)) or closest(name, KNOWN)
    raise SpecError("This attack of torchattack is not run here.", name, ", ".join(KNOWN), fix)


def resolve_options(name: str, given: Mapping[str, Option]) -> dict[str, Option]:
    """All options of an attack, the defaults included; ``alpha`` is eps / steps unless it is given.

    Raises:
        SpecError: an option does not exist, or its value has the wrong type or is out of range.
    """
    defaults = {**SHARED, **look_up(name).options}
    given = {key: plain(value) for key, value in given.items()}
    for key, value in given.items():
        if key not in defaults:
            options = ", ".join([*defaults, "seed", "batch"])
            raise SpecError(f"torchattack's {name} has no such option.", key, options, closest(key, defaults))
        if isinstance(defaults[key], int):
            fits, allowed = is_count(value, least=1), "an int >= 1"
        else:
            within, allowed = _RANGES.get(key, _POSITIVE)
            fits = is_number(value) and within(value)
        if not fits:
            raise SpecError(f"{key} of torchattack's {name} is not usable.", value, allowed)
    resolved = defaults | given
    resolved["alpha"] = float(resolved["alpha"]) or float(resolved["eps"]) / int(resolved["steps"])
    return resolved
