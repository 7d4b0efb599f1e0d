"""The Adversarial Robustness Toolbox (ART): defective networks as its classifiers, our attacks as its attacks.

The defence lives in the ``nn.Module``. ART rebuilds, copies and resets estimators, and whatever it builds around a
defective network is defective; :class:`DefectiveClassifier` only mends what stands in the way of ART's attacks.

Needs ``pip install "dcn-plugin[art]"``.
"""

from __future__ import annotations

import importlib

from dcn_plugin.errors import MissingExtraError

try:
    importlib.import_module("art.estimators.classification")
except ModuleNotFoundError as error:
    raise MissingExtraError(
        "The Adversarial Robustness Toolbox is not installed, or not all that it needs.",
        error.name,
        fix='pip install "dcn-plugin[art]"',
    ) from error

from dcn_plugin.adapters._art_attacks import (
    DcnAttack,
    DcnBestOf,
    DcnBoundaryAttack,
    DcnCW,
    DcnHopSkipJump,
    DcnLowPassPGD,
    DcnMIFGSM,
    DcnPGD,
    DcnRandomLowPass,
    DcnTIFGSM,
)
from dcn_plugin.adapters._art_classifier import DefectiveClassifier
from dcn_plugin.adapters._art_transformer import DefectiveTransformer

__all__ = [
    "DcnAttack",
    "DcnBestOf",
    "DcnBoundaryAttack",
    "DcnCW",
    "DcnHopSkipJump",
    "DcnLowPassPGD",
    "DcnMIFGSM",
    "DcnPGD",
    "DcnRandomLowPass",
    "DcnTIFGSM",
    "DefectiveClassifier",
    "DefectiveTransformer",
]
