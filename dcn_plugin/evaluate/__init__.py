"""Protocols that measure models, one a file, each giving :class:`Result` records."""

from dcn_plugin.evaluate.environment import code_hash, hardware, package_versions
from dcn_plugin.evaluate.examples import ExampleRow, Examples
from dcn_plugin.evaluate.gaussian import Noise, add_noise, gaussian
from dcn_plugin.evaluate.predict import correct, predict
from dcn_plugin.evaluate.records import SCHEMA, Result, ResultFile, Rounding, Scalar
from dcn_plugin.evaluate.stats import Spread, spread, wilson
from dcn_plugin.evaluate.transfer import AdversarialSet, adversarial_set, measure_targets, transfer

__all__ = [
    "SCHEMA",
    "AdversarialSet",
    "ExampleRow",
    "Examples",
    "Noise",
    "Result",
    "ResultFile",
    "Rounding",
    "Scalar",
    "Spread",
    "add_noise",
    "adversarial_set",
    "code_hash",
    "correct",
    "gaussian",
    "hardware",
    "measure_targets",
    "package_versions",
    "predict",
    "spread",
    "transfer",
    "wilson",
]
