"""Protocols that measure models, one a file, each giving :class:`Result` records."""

from dcn_plugin.evaluate.amplitude import amplitude
from dcn_plugin.evaluate.changes import Change, Changed, measure_changes
from dcn_plugin.evaluate.cue_conflict import cue_conflict, cue_decisions
from dcn_plugin.evaluate.distance import minimal_distance
from dcn_plugin.evaluate.examples import ExampleRow, Examples
from dcn_plugin.evaluate.gaussian import Noise, add_noise, gaussian
from dcn_plugin.evaluate.keys import attack_key, data_key, model_key
from dcn_plugin.evaluate.predict import correct, correct_on, logits_of, predict
from dcn_plugin.evaluate.records import SCHEMA, Relation, Result, ResultFile, Rounding, Scalar
from dcn_plugin.evaluate.relations import relation
from dcn_plugin.evaluate.sanity import sanity
from dcn_plugin.evaluate.sets import AdversarialBatch, AdversarialSet
from dcn_plugin.evaluate.shuffle import shuffle
from dcn_plugin.evaluate.store import RunDirectory, add_results
from dcn_plugin.evaluate.stylized import stylized
from dcn_plugin.evaluate.tapm import tapm
from dcn_plugin.evaluate.transfer import measure_targets, transfer
from dcn_plugin.evaluate.whitebox import whitebox
from dcn_plugin.support.environment import code_hash, hardware, package_versions
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
    "sanity",
    "shuffle",
    "spread",
    "stylized",
    "tapm",
    "transfer",
    "whitebox",
    "wilson",
]
