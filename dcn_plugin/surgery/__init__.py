"""Where masks go into a network, and how they come out again."""

from dcn_plugin.surgery.apply import _check_masks_in_state_dict as _check_masks_in_state_dict  # by name in pickles
from dcn_plugin.surgery.apply import defectify, insert_masks, plan_defects, undefectify
from dcn_plugin.surgery.inspection import Summary, summary, verify
from dcn_plugin.surgery.queries import (
    check_model,
    defect_spec,
    expected_sites,
    image_size,
    is_defective,
    masks_of,
    owner_path,
)

__all__ = [
    "Summary",
    "check_model",
    "defect_spec",
    "defectify",
    "expected_sites",
    "image_size",
    "insert_masks",
    "is_defective",
    "masks_of",
    "owner_path",
    "plan_defects",
    "summary",
    "undefectify",
    "verify",
]
