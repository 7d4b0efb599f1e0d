"""The engine: :func:`compact` makes the skipped neurons of a defective model cost nothing."""

from dcn_plugin.engine.compact_model import CompactModel
from dcn_plugin.engine.compaction import compact
from dcn_plugin.engine.plan import LayerPlan, Plan
from dcn_plugin.support.old_paths import keep_old_paths

__all__ = ["CompactModel", "LayerPlan", "Plan", "compact"]

keep_old_paths(__name__, snapshot="dcn_plugin.engine.compact_model")
