"""Data sets, in memory or read from disk batch by batch, and the image transforms of the shape and texture protocols.

Images are float32 (N, C, H, W) in [0, 1], labels int64 (N,).
"""

from dcn_plugin.data.array_files import load_mnist_idx, load_npz, load_torchvision
from dcn_plugin.data.augment import random_shift
from dcn_plugin.data.decode import EvalTransform
from dcn_plugin.data.digits import load_digits
from dcn_plugin.data.formats import load_cifar_c, load_stl10
from dcn_plugin.data.image_files import ImageFiles
from dcn_plugin.data.image_folder import ImageFolder
from dcn_plugin.data.imageset import ImageSet, Splits
from dcn_plugin.data.names import read_class_names
from dcn_plugin.data.patches import patch_permutations, patch_shuffle
from dcn_plugin.data.registry import DATA_SPECS, DataPart, open_images
from dcn_plugin.data.source import IndexedImages, LabelledImages
from dcn_plugin.data.spectrum import AmplitudeSwap, amplitude_partners, amplitude_swap
from dcn_plugin.data.stylized import CUE_CLASSES, CueConflict, paired_folders

__all__ = [
    "CUE_CLASSES",
    "DATA_SPECS",
    "AmplitudeSwap",
    "CueConflict",
    "DataPart",
    "EvalTransform",
    "ImageFiles",
    "ImageFolder",
    "ImageSet",
    "IndexedImages",
    "LabelledImages",
    "Splits",
    "amplitude_partners",
    "amplitude_swap",
    "load_cifar_c",
    "load_digits",
    "load_mnist_idx",
    "load_npz",
    "load_stl10",
    "load_torchvision",
    "open_images",
    "paired_folders",
    "patch_permutations",
    "patch_shuffle",
    "random_shift",
    "read_class_names",
]
