"""Attacks in plain PyTorch: images in [0, 1] in, images in [0, 1] out."""

from dcn_plugin.attacks.base import Attack, AttackResult, AttackRun
from dcn_plugin.attacks.best_of import BestOf
from dcn_plugin.attacks.boundary import BoundaryAttack
from dcn_plugin.attacks.checks import check_images, check_labels, check_logits, warn_if_probabilities
from dcn_plugin.attacks.cw import CW
from dcn_plugin.attacks.decision import DecisionAttack
from dcn_plugin.attacks.distilled import DistilledSource
from dcn_plugin.attacks.ensemble import EnsembleSource
from dcn_plugin.attacks.hopskipjump import HopSkipJump
from dcn_plugin.attacks.low_frequency import MIFGSM, TIFGSM, LowPassPGD, RandomLowPass
from dcn_plugin.attacks.pgd import PGD
from dcn_plugin.attacks.streams import SampleStreams

__all__ = [
    "CW",
    "MIFGSM",
    "PGD",
    "TIFGSM",
    "Attack",
    "AttackResult",
    "AttackRun",
    "BestOf",
    "BoundaryAttack",
    "DecisionAttack",
    "DistilledSource",
    "EnsembleSource",
    "HopSkipJump",
    "LowPassPGD",
    "RandomLowPass",
    "SampleStreams",
    "check_images",
    "check_labels",
    "check_logits",
    "warn_if_probabilities",
]
