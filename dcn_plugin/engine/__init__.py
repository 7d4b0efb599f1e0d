"""The engine: :func:`compact` makes the skipped neurons of a defective model cost nothing."""

from dcn_plugin.engine.model import CompactModel, compact
from dcn_plugin.engine.plan import LayerPlan, Plan

__all__ = ["CompactModel", "LayerPlan", "Plan", "compact"]
