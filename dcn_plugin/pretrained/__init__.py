"""Pretrained networks: a few small ones that come with the package, and a registry for those of your own.

Every network has a card that says what it is, what it was trained on, how well it does, and the SHA-256 of its file.
Files are safetensors: nothing is ever unpickled, and a card cannot name code to run.
"""

from dcn_plugin.pretrained.card import PretrainedCard
from dcn_plugin.pretrained.load import load_pretrained
from dcn_plugin.pretrained.registry import list_pretrained, pretrained_card, register_pretrained
from dcn_plugin.pretrained.storage import load_half, save_half

__all__ = [
    "PretrainedCard",
    "list_pretrained",
    "load_half",
    "load_pretrained",
    "pretrained_card",
    "register_pretrained",
    "save_half",
]
