"""The engine: skipped neurons cost nothing, in use (:func:`compact`) and in training (:func:`compact_training`)."""

from dcn_plugin.engine.compact_model import CompactModel
from dcn_plugin.engine.compaction import compact
from dcn_plugin.engine.plan import LayerPlan, Plan
from dcn_plugin.engine.training.model import TrainingModel, TrainingPlan, compact_training
from dcn_plugin.support.old_paths import keep_old_paths

__all__ = ["CompactModel", "LayerPlan", "Plan", "TrainingModel", "TrainingPlan", "compact", "compact_training"]

keep_old_paths(__name__, snapshot="dcn_plugin.engine.compact_model")
