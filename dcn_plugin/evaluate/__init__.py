"""Protocols that measure models, one a file, each giving :class:`Result` records."""

from types import ModuleType

from dcn_plugin.evaluate import protocols
from dcn_plugin.evaluate.adversarial_set import AdversarialBatch, AdversarialSet
from dcn_plugin.evaluate.cache_keys import attack_key, data_key, model_key
from dcn_plugin.evaluate.examples import ExampleRow, Examples
from dcn_plugin.evaluate.predictions import correct, correct_on, logits_of, predict
from dcn_plugin.evaluate.protocols.amplitude import amplitude
from dcn_plugin.evaluate.protocols.autoattack import autoattack
from dcn_plugin.evaluate.protocols.changed_images import Change, Changed, measure_changes
from dcn_plugin.evaluate.protocols.cue_conflict import cue_conflict, cue_decisions
from dcn_plugin.evaluate.protocols.curve import robustness_curve
from dcn_plugin.evaluate.protocols.distance import minimal_distance
from dcn_plugin.evaluate.protocols.gaussian import Noise, add_noise, gaussian
from dcn_plugin.evaluate.protocols.sanity import sanity
from dcn_plugin.evaluate.protocols.shuffle import shuffle
from dcn_plugin.evaluate.protocols.stylized import stylized
from dcn_plugin.evaluate.protocols.tapm import tapm
from dcn_plugin.evaluate.protocols.transfer import measure_targets, transfer
from dcn_plugin.evaluate.protocols.whitebox import whitebox
from dcn_plugin.evaluate.records import SCHEMA, Relation, Result, ResultFile, Rounding, Scalar
from dcn_plugin.evaluate.relations import relation
from dcn_plugin.evaluate.run_directory import RunDirectory, add_results
from dcn_plugin.support.environment import code_hash, hardware, package_versions
from dcn_plugin.support.old_paths import keep_old_paths
from dcn_plugin.support.processes import Team
from dcn_plugin.support.progress import progress_bar
from dcn_plugin.support.statistics import Spread, median_interval, spread, wilson

__all__ = [
    "SCHEMA",
    "AdversarialBatch",
    "AdversarialSet",
    "Change",
    "Changed",
    "ExampleRow",
    "Examples",
    "Noise",
    "Relation",
    "Result",
    "ResultFile",
    "Rounding",
    "RunDirectory",
    "Scalar",
    "Spread",
    "Team",
    "add_noise",
    "add_results",
    "amplitude",
    "attack_key",
    "autoattack",
    "code_hash",
    "correct",
    "correct_on",
    "cue_conflict",
    "cue_decisions",
    "data_key",
    "gaussian",
    "hardware",
    "logits_of",
    "measure_changes",
    "measure_targets",
    "median_interval",
    "minimal_distance",
    "model_key",
    "package_versions",
    "predict",
    "progress_bar",
    "relation",
    "robustness_curve",
    "sanity",
    "shuffle",
    "spread",
    "stylized",
    "tapm",
    "transfer",
    "whitebox",
    "wilson",
]

keep_old_paths(
    __name__,
    predict="dcn_plugin.evaluate.predictions",
    **{name: file.__name__ for name, file in vars(protocols).items() if isinstance(file, ModuleType)},
)
