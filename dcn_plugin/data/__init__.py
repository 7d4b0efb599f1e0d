"""Data sets as tensors: images float32 (N, C, H, W) in [0, 1], labels int64 (N,)."""

from dcn_plugin.data.augment import random_shift
from dcn_plugin.data.digits import load_digits
from dcn_plugin.data.imageset import ImageSet, Splits

__all__ = ["ImageSet", "Splits", "load_digits", "random_shift"]
