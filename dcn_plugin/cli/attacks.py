"""Attacks by name: ours, torchattacks', and the sets that papers use."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from dcn_plugin.cli.named_options import Spec, parse_spec
from dcn_plugin.errors import SpecError
from dcn_plugin.support.suggestions import closest

if TYPE_CHECKING:
    from dcn_plugin.attacks import Attack

__all__ = ["ATTACKS", "open_attacks"]

ATTACKS = (
    "fgsm,eps=8/255; pgd,eps=8/255,steps=20,step_size=1/255; boundary,max_queries=5000; boundary-paper; "
    "hopskipjump,max_queries=5000; cw,confidence=0; cw-paper; paper (FGSM, PGD and MI-FGSM at the paper's settings); "
    "modern,eps=8/255 (DI, TI, SI-NI, VMI, VNI-FGSM); or an attack of torchattacks: MIFGSM,eps=16/255,steps=10"
)
"""What :func:`open_attacks` understands, for help texts."""


def open_attacks(texts: Iterable[str]) -> list[Attack]:
    """Make the attacks that stand on the command line.

    Raises:
        SpecError: an unknown attack or option.
        MissingExtraError: torchattacks is needed and not installed.
    """
    return [attack for text in texts for attack in _open(parse_spec(text))]


def _open(spec: Spec) -> list[Attack]:
    if spec.head in ("paper", "modern"):
        from dcn_plugin.adapters.torchattacks import modern_transfer_attacks, paper_attacks

        make = paper_attacks if spec.head == "paper" else modern_transfer_attacks
        return list(spec.call(make).values())
    attack_type = _own().get(spec.head.lower())
    if attack_type is not None and spec.head.islower():
        return [spec.call(attack_type)]
    if spec.head.islower():
        near = _near(spec.head)
        raise SpecError("There is no attack of this name.", spec.head, ATTACKS, near)
    from dcn_plugin.adapters.torchattacks import TorchAttack

    return [TorchAttack(spec.head, **spec.options)]


def _near(name: str) -> str | None:
    """The question "did you mean ...?" with our names, and torchattacks' where it is installed."""
    names = [*_own(), "paper", "modern"]
    with contextlib.suppress(ImportError):
        from dcn_plugin.adapters._torchattacks_table import KNOWN

        names += KNOWN
    return closest(name, names)


def _own() -> dict[str, Callable[..., Attack]]:
    from dcn_plugin.attacks import CW, PGD, BoundaryAttack, HopSkipJump

    def fgsm(eps: float) -> Attack:
        return PGD(eps, steps=1, step_size=eps)

    return {
        "fgsm": fgsm,
        "pgd": PGD,
        "boundary": BoundaryAttack,
        "boundary-paper": BoundaryAttack.paper,
        "hopskipjump": HopSkipJump,
        "cw": CW,
        "cw-paper": CW.paper,
    }
