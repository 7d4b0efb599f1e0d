"""torchattacks: its attacks run as ours, ours run as its own.

- :class:`TorchAttack` runs one of torchattacks' attacks as a :class:`dcn_plugin.attacks.Attack`, for every evaluator.
- :func:`paper_attacks` and :func:`modern_transfer_attacks` are sets of attacks with names; :data:`MODERN` has the years
  and papers of the latter.
- :class:`BoundaryAttack`, :class:`HopSkipJump` and :class:`CW` are subclasses of ``torchattacks.attack.Attack``, and
  :class:`DcnAttack` makes one of any attack of ours.

Needs ``pip install "dcn-plugin[attacks]"``.
"""

from __future__ import annotations

import importlib

from dcn_plugin.errors import MissingExtraError

try:
    importlib.import_module("torchattacks")
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "torchattacks is not installed, or not all that it needs.",
        error.name,
        fix='pip install "dcn-plugin[attacks]"',
    ) from error

from dcn_plugin.adapters._torchattacks_bridge import CW, BoundaryAttack, DcnAttack, HopSkipJump
from dcn_plugin.adapters._torchattacks_runner import TorchAttack
from dcn_plugin.adapters._torchattacks_sets import MODERN, ModernAttack, modern_transfer_attacks, paper_attacks

__all__ = [
    "CW",
    "MODERN",
    "BoundaryAttack",
    "DcnAttack",
    "HopSkipJump",
    "ModernAttack",
    "TorchAttack",
    "modern_transfer_attacks",
    "paper_attacks",
]
