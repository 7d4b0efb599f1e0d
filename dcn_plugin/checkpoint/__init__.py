"""Networks in files, and back: weights, masks and specification in safetensors; nothing is ever unpickled."""

from dcn_plugin.checkpoint.class_names import class_names_in, class_names_of, name_classes
from dcn_plugin.checkpoint.network import CheckpointInfo, load_checkpoint, read_info, read_spec, save_checkpoint
from dcn_plugin.checkpoint.weights import load_weights, read_weights

__all__ = [
    "CheckpointInfo",
    "class_names_in",
    "class_names_of",
    "load_checkpoint",
    "load_weights",
    "name_classes",
    "read_info",
    "read_spec",
    "read_weights",
    "save_checkpoint",
]
