"""Defective Convolutional Networks for PyTorch and timm.

A defective CNN has neurons in its bottom layers that are always zero: a binary mask, sampled once, fixed in
training and in test (Luo et al., arXiv 1911.08432). This is not deformable convolution, which shares the
abbreviation "DCN".
"""

from typing import TYPE_CHECKING

from dcn_plugin.support import startup
from dcn_plugin.support.old_paths import keep_old_paths

if TYPE_CHECKING or not startup.waits():
    from dcn_plugin.checkpoint import load_checkpoint, save_checkpoint
    from dcn_plugin.engine import CompactModel, TrainingModel, compact, compact_training
    from dcn_plugin.engine import export as export
    from dcn_plugin.engine.export import for_export
    from dcn_plugin.layers import DefectiveConv2d, DefectMask2d, Normalized
    from dcn_plugin.masks import sample_mask
    from dcn_plugin.models import defective as _timm_models  # noqa: F401  (registers defective_<name> with timm)
    from dcn_plugin.specs import DefectSpec, MaskSpec
    from dcn_plugin.surgery import defect_spec, defectify, is_defective, undefectify
    from dcn_plugin.surgery.inspection import summary, verify
    from dcn_plugin.surgery.recalibration import recalibrate

    keep_old_paths(
        __name__,
        classes="dcn_plugin.checkpoint.class_names",
        weights="dcn_plugin.checkpoint.weights",
        convs="dcn_plugin.surgery.masked_conv",
        inspection="dcn_plugin.surgery.inspection",
        instance_norm="dcn_plugin.surgery.instance_norm",
    )

__version__ = "0.1.0"

__all__ = [
    "CompactModel",
    "DefectMask2d",
    "DefectSpec",
    "DefectiveConv2d",
    "MaskSpec",
    "Normalized",
    "TrainingModel",
    "__version__",
    "compact",
    "compact_training",
    "defect_spec",
    "defectify",
    "for_export",
    "is_defective",
    "load_checkpoint",
    "recalibrate",
    "sample_mask",
    "save_checkpoint",
    "summary",
    "undefectify",
    "verify",
]
