"""Attacks on the command line: the registry of attacks, with a help text that is light.

The text stands here and not in :mod:`dcn_plugin.adapters.attack_registry`, because a parser that shows it must not load
torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcn_plugin.attacks import Attack

__all__ = ["ATTACKS", "open_attacks"]

ATTACKS = (
    "fgsm,eps=8/255; pgd,eps=8/255,steps=20; pgd-paper,eps=16/255; mifgsm,eps=16/255; mi-fgsm,eps=8/255,cutoff=0.25; "
    "ti-fgsm,eps=8/255,kernel=7; low-pass-pgd,eps=8/255,cutoff=0.25; low-pass-noise,eps=8/255,cutoff=0.25; "
    "boundary,max_queries=5000; boundary-paper; hopskipjump,max_queries=5000; cw,confidence=0; cw-paper; "
    "square,eps=8/255; autoattack,eps=8/255 (or norm=L2,eps=0.5); nearest,norm=L2,steps=100 (the best of adv-lib's); "
    "paper (FGSM, PGD and MI-FGSM at the paper's settings); modern,eps=8/255 (ten transfer attacks of 2019 to 2024); "
    "in short, with grey levels: pgd(1,20,16), modern(8); or an attack of torchattacks, torchattack or adv-lib by its "
    "name there: MIFGSM,eps=16/255,steps=10; BSR,eps=8/255; DDN,steps=100"
)
"""What :func:`open_attacks` understands, for help texts."""


def open_attacks(texts: Iterable[str]) -> list[Attack]:
    """Make the attacks that stand on the command line.

    Raises:
        SpecError: an unknown attack or option.
        MissingExtraError: a library is needed and not installed.
    """
    from dcn_plugin.adapters import attack_registry

    return attack_registry.open_attacks(texts)
