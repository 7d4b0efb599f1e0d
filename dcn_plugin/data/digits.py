"""scikit-learn's embedded digits: 1,797 real handwritten digits that need no download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from dcn_plugin.data.imageset import ImageSet, Splits
from dcn_plugin.errors import MissingExtraError, SpecError
from dcn_plugin.support.randomness import philox

__all__ = ["load_digits"]

TEST_SHARE = 0.25
VAL_SHARE = 0.10
_FILE = "datasets/data/digits.csv.gz"


def load_digits(*, size: int = 16, seed: int = 0) -> Splits:
    """Load the digits, resize them, and split them.

    Args:
        size: height and width; the originals are 8 x 8, resized bilinearly.
        seed: of the split, 0 .. 2**64 - 1. In each class 25 % of the images are test, 10 % validation.

    Returns:
        Splits of float32 (N, 1, size, size) images in [0, 1] and 10 classes: 1,168 / 179 / 450 images.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        SpecError: ``size`` is below 8.

    Source: Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits" (its test part).
    """
    if size < 8:
        raise SpecError("The digits cannot be made smaller than they are.", size, "an int >= 8")
    pixels, digits = _embedded()
    small = torch.from_numpy(pixels).float().unsqueeze(1) / 16
    images = F.interpolate(small, size=(size, size), mode="bilinear", align_corners=False).clamp(0, 1)
    labels = torch.from_numpy(digits).long()
    parts: dict[str, list[torch.Tensor]] = {"train": [], "val": [], "test": []}
    for digit in range(10):
        members = (labels == digit).nonzero().flatten()
        order = torch.from_numpy(np.argsort(philox(seed, digit).random_raw(len(members)), kind="stable"))
        n_test, n_val = round(TEST_SHARE * len(members)), round(VAL_SHARE * len(members))
        cut = members[order].split([n_test, n_val, len(members) - n_test - n_val])
        for name, indices in zip(("test", "val", "train"), cut, strict=True):
            parts[name].append(indices)
    dataset = ImageSet(images, labels, 10, f"digits{size}", tuple("0123456789"))
    train, val, test = (
        # Sorted by index, so that the classes are mixed as in the original file.
        dataset.subset(torch.cat(parts[name]).sort().values, name=f"digits{size}/{name}")
        for name in ("train", "val", "test")
    )
    return Splits(train, val, test)


def _embedded() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (1797, 8, 8) from 0 to 16, and labels; without the import of scikit-learn, which takes seconds."""
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise MissingExtraError(
            "The embedded digits come with scikit-learn, which is not installed.",
            fix='pip install "dcn-plugin[demo]"',
        )
    for folder in package.submodule_search_locations or ():
        file = Path(folder, _FILE)
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits as embedded_digits  # a version that keeps its file elsewhere

    raw = embedded_digits()
    return raw.images, raw.target
