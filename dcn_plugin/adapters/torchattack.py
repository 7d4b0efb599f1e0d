"""torchattack, another library than torchattacks with an s: its transfer attacks of 2018 to 2024 run as ours.

- :class:`TransferAttack` runs one of its attacks as a :class:`dcn_plugin.attacks.Attack`, for every evaluator.

Needs ``pip install "dcn-plugin[attacks]"``.
"""

from __future__ import annotations

import importlib

from dcn_plugin.errors import MissingExtraError

try:
    importlib.import_module("torchattack")
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "torchattack is not installed, or not all that it needs.",
        error.name,
        fix='pip install "dcn-plugin[attacks]"',
    ) from error

from dcn_plugin.adapters._torchattack_runner import TransferAttack

__all__ = ["TransferAttack"]
