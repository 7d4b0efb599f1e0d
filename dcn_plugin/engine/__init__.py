"""The engine: :func:`compact` makes the skipped neurons of a defective model cost nothing."""

from dcn_plugin.engine.model import compact
from dcn_plugin.engine.plan import LayerPlan, Plan
from dcn_plugin.engine.snapshot import CompactModel

__all__ = ["CompactModel", "LayerPlan", "Plan", "compact"]
