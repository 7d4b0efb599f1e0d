"""Attacks by name, in one notation for the command line, recipes and Python: ours, other libraries', and sets of them.

::

    pgd,eps=8/255,steps=20          a name with options: those of the attack's constructor
    pgd(1,20,16)                    in short, as papers write it; lengths in grey levels of 255
    modern(8)                       a set of attacks
    MIFGSM,eps=16/255               an attack of torchattacks, torchattack or adv-lib, by its name there
    torchattack:BSR,eps=8/255       the same with its library, where two have the name
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dcn_plugin.attacks import (
    CW,
    MIFGSM,
    PGD,
    TIFGSM,
    Attack,
    BoundaryAttack,
    HopSkipJump,
    LowPassPGD,
    RandomLowPass,
)
from dcn_plugin.errors import MissingExtraError, SpecError
from dcn_plugin.support.named_options import Spec, parse_spec
from dcn_plugin.support.suggestions import closest

__all__ = ["ATTACKS", "AttackEntry", "make_attack", "open_attack", "open_attacks", "parse_attack"]

GREY = 1 / 255
#: Options whose numbers in short are grey levels.
_LENGTHS = ("eps", "step_size", "alpha")
_SHORT = re.compile(r"(?P<head>[\w.:-]+)\((?P<numbers>[^()=]*)\)")

Maker = Callable[..., Any]


@dataclass(frozen=True)
class AttackEntry:
    """One name of the registry.

    Args:
        make: the attack's constructor, or a function that gives a set: name -> attack.
        example: how it is written with options.
        numbers: options that the short form gives, in its order; () = it has none.
        short: what the short form stands for, where that is another entry.
        year: of its publication; None for a set.
        source: its paper.
    """

    make: Maker
    example: str
    numbers: tuple[str, ...] = ()
    short: str = ""
    year: int | None = None
    source: str = ""


def _fgsm(eps: float) -> Attack:
    return PGD(eps, steps=1, step_size=eps)


def _torchattacks(name: str, **fixed: Any) -> Maker:
    def make(**options: Any) -> Attack:
        from dcn_plugin.adapters.torchattacks import TorchAttack

        return TorchAttack(name, **{**fixed, **options})

    return make


def _mifgsm(eps: float, *, step_size: float | None = None, steps: int = 10, decay: float = 1.0) -> Attack:
    from dcn_plugin.adapters.torchattacks import TorchAttack

    alpha = eps / steps if step_size is None else step_size
    return TorchAttack("MIFGSM", eps=eps, alpha=alpha, steps=steps, decay=decay)


def _paper() -> Mapping[str, Attack]:
    from dcn_plugin.adapters.torchattacks import paper_attacks

    return paper_attacks()


def _modern(eps: float, **options: Any) -> Mapping[str, Attack]:
    from dcn_plugin.adapters.torchattacks import modern_transfer_attacks

    return Spec("modern", options).call(modern_transfer_attacks, eps=eps)  # type: ignore[no-any-return]


def _nearest(norm: str = "L2", steps: int = 100, seed: int = 0, batch: int = 64) -> Attack:
    from dcn_plugin.adapters.adv_lib import nearest_of_all

    return nearest_of_all(norm, steps=steps, seed=seed, batch=batch)  # type: ignore[arg-type]


ATTACKS: Mapping[str, AttackEntry] = {
    "fgsm": AttackEntry(_fgsm, "fgsm,eps=8/255", ("eps",), year=2015, source="Goodfellow et al., arXiv 1412.6572"),
    "pgd": AttackEntry(
        PGD, "pgd,eps=8/255,steps=20", ("step_size", "steps", "eps"), year=2018, source="Madry et al., arXiv 1706.06083"
    ),
    "pgd-paper": AttackEntry(PGD.paper, "pgd-paper,eps=16/255,steps=20", year=2018, source="arXiv 1706.06083"),
    "mifgsm": AttackEntry(
        _mifgsm, "mifgsm,eps=16/255", ("step_size", "steps", "eps"), year=2018, source="Dong et al., arXiv 1710.06081"
    ),
    "mi-fgsm": AttackEntry(
        MIFGSM, "mi-fgsm,eps=8/255,cutoff=0.25", ("eps", "cutoff"), year=2018, source="Dong et al., arXiv 1710.06081"
    ),
    "ti-fgsm": AttackEntry(
        TIFGSM, "ti-fgsm,eps=8/255,kernel=7", ("eps", "kernel"), year=2019, source="Dong et al., arXiv 1904.02884"
    ),
    "low-pass-pgd": AttackEntry(
        LowPassPGD,
        "low-pass-pgd,eps=8/255,cutoff=0.25",
        ("eps", "cutoff"),
        year=2019,
        source="Sharma, Ding, Brubaker, arXiv 1903.00073",
    ),
    "low-pass-noise": AttackEntry(RandomLowPass, "low-pass-noise,eps=8/255,cutoff=0.25", ("eps", "cutoff")),
    "boundary": AttackEntry(
        BoundaryAttack, "boundary,max_queries=5000", year=2018, source="Brendel et al., arXiv 1712.04248"
    ),
    "boundary-paper": AttackEntry(BoundaryAttack.paper, "boundary-paper", year=2018, source="arXiv 1712.04248"),
    "hopskipjump": AttackEntry(
        HopSkipJump, "hopskipjump,max_queries=5000", year=2020, source="Chen et al., arXiv 1904.02144"
    ),
    "cw": AttackEntry(
        CW,
        "cw,confidence=0",
        ("confidence",),
        short="cw-paper",
        year=2017,
        source="Carlini and Wagner, arXiv 1608.04644",
    ),
    "cw-paper": AttackEntry(CW.paper, "cw-paper", ("confidence",), year=2017, source="arXiv 1608.04644"),
    "square": AttackEntry(
        _torchattacks("Square", norm="Linf"),
        "square,eps=8/255",
        ("eps",),
        year=2020,
        source="Andriushchenko et al., arXiv 1912.00049",
    ),
    "autoattack": AttackEntry(
        _torchattacks("AutoAttack", norm="Linf"),
        "autoattack,eps=8/255 (norm=L2,eps=0.5)",
        ("eps",),
        year=2020,
        source="Croce and Hein, arXiv 2003.01690",
    ),
    "nearest": AttackEntry(
        _nearest, "nearest,norm=L2,steps=100 (the best of adv-lib's DDN, ALMA, PDGD, FMN, APGD, for curve and distance)"
    ),
    "paper": AttackEntry(_paper, "paper (FGSM, PGD and MI-FGSM at the paper's settings)"),
    "modern": AttackEntry(_modern, "modern,eps=8/255 (ten transfer attacks of 2019 to 2024)", ("eps",)),
}
"""Name -> how it is made and written; names of other libraries are taken as they are there."""


def parse_attack(text: str) -> Spec:
    """Read an attack in either form; the short one becomes options, with grey levels as shares of 255.

    Raises:
        SpecError: it is written otherwise, or its short form has another number of numbers.

    Example:
        >>> parse_attack("pgd(1,20,16)").options["steps"]
        20
    """
    squeezed = text.replace(" ", "")
    match = _SHORT.fullmatch(squeezed)
    if match is None:
        if "(" in squeezed.partition(",")[0]:
            raise SpecError("This is no attack.", text, "NAME,key=value,... or NAME(number,...)")
        return parse_spec(text)
    head = match["head"]
    if head not in ATTACKS:
        raise SpecError("There is no attack of this name in short.", text, _forms(), _near(head))
    entry = ATTACKS[head]
    try:
        numbers = [float(number) for number in match["numbers"].split(",") if number]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) > len(entry.numbers) or len(numbers) < min(len(entry.numbers), _least(entry)):
        raise SpecError(f"The attack {head} is written otherwise.", text, _form(head))
    options = {
        name: number * GREY if name in _LENGTHS else int(number) if number.is_integer() and name != "cutoff" else number
        for name, number in zip(entry.numbers, numbers, strict=False)
    }
    return Spec(entry.short or head, options)


def open_attack(text: str) -> dict[str, Attack]:
    """Make an attack, or those of a set.

    Args:
        text: in the notation of this module.

    Returns:
        name -> attack; of a single attack by its own name.

    Raises:
        SpecError: an unknown attack or option (the nearest names are in the message), or a value out of range.
        MissingExtraError: its library is not installed.

    Example:
        >>> list(open_attack("pgd(1,20,16)"))
        ['PGD']
    """
    return make_attack(parse_attack(text))


def make_attack(spec: Spec) -> dict[str, Attack]:
    """Make what :func:`parse_attack` read; see :func:`open_attack`."""
    library, _, name = spec.head.rpartition(":")
    if library:
        return _named(_library(library)(name, **spec.options))
    if name in ATTACKS:
        return _named(spec.call(ATTACKS[name].make))
    if name.islower():
        examples = "; ".join(entry.example for entry in ATTACKS.values())
        raise SpecError("There is no attack of this name.", name, examples, _near(name))
    for candidate, known in _known().items():
        if name in known:
            return _named(_LIBRARIES[candidate](name, **spec.options))
    # torchattacks' table has the reason for what it refuses.
    return _named(_LIBRARIES["torchattacks"](name, **spec.options))


def open_attacks(texts: Iterable[str]) -> list[Attack]:
    """Make attacks, those of sets one after the other; see :func:`open_attack`."""
    return [attack for text in texts for attack in open_attack(text).values()]


def _named(result: Any) -> dict[str, Attack]:
    return dict(result) if isinstance(result, Mapping) else {result.name: result}


def _torchattacks_attack(name: str, **options: Any) -> Attack:
    from dcn_plugin.adapters.torchattacks import TorchAttack

    return TorchAttack(name, **options)


def _torchattack_attack(name: str, **options: Any) -> Attack:
    from dcn_plugin.adapters.torchattack import TransferAttack

    return TransferAttack(name, **options)


def _adv_lib_attack(name: str, **options: Any) -> Attack:
    from dcn_plugin.adapters.adv_lib import MinimumNorm

    return MinimumNorm(name, **options)


_LIBRARIES: Mapping[str, Callable[..., Attack]] = {
    "torchattacks": _torchattacks_attack,
    "torchattack": _torchattack_attack,
    "adv-lib": _adv_lib_attack,
}


def _library(name: str) -> Callable[..., Attack]:
    if name not in _LIBRARIES:
        raise SpecError("There is no library of this name.", name, ", ".join(_LIBRARIES), closest(name, _LIBRARIES))
    return _LIBRARIES[name]


def _known() -> dict[str, Iterable[str]]:
    """Library -> its attacks; torchattacks' table needs the library itself."""
    from dcn_plugin.adapters import _adv_lib_table, _torchattack_table

    known: dict[str, Iterable[str]] = {}
    try:
        from dcn_plugin.adapters._torchattacks_table import KNOWN

        known["torchattacks"] = KNOWN
    except (ImportError, MissingExtraError):
        pass
    return known | {"torchattack": _torchattack_table.KNOWN, "adv-lib": _adv_lib_table.KNOWN}


def _near(name: str) -> str | None:
    """The question "did you mean ...?" with all names that are known."""
    return closest(name, [*ATTACKS, *(attack for known in _known().values() for attack in known)])


def _least(entry: AttackEntry) -> int:
    """Numbers that a short form cannot do without: a cut-off or a kernel has a default."""
    return sum(name not in ("cutoff", "kernel") for name in entry.numbers)


def _form(head: str) -> str:
    """How a short form is written: "pgd(STEP,STEPS,EPS)"."""
    names = [name.removesuffix("_size").upper() for name in ATTACKS[head].numbers]
    return f"{head}({','.join(names)})" if names else head


def _forms() -> str:
    return "; ".join(_form(head) for head, entry in ATTACKS.items() if entry.numbers)
