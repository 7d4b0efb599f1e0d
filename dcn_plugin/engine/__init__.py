"""The engine: :func:`compact` makes the skipped neurons of a defective model cost nothing."""

from dcn_plugin.engine.compact_model import CompactModel
from dcn_plugin.engine.compaction import compact
from dcn_plugin.engine.plan import LayerPlan, Plan

__all__ = ["CompactModel", "LayerPlan", "Plan", "compact"]
