"""Parts of a data set, and the validation set that is split off it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dcn_plugin.data import ImageFiles, ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.support.randomness import raw_draws

__all__ = ["part_of", "split_off"]


def split_off(
    data: ImageSet | ImageFiles, share: float, *, seed: int = 0
) -> tuple[ImageSet | ImageFiles, ImageSet | ImageFiles]:
    """Split a validation set off the training images, the same share of every class.

    Args:
        data: the training images; files are not read.
        share: of the validation set, in (0, 1), rounded class by class; every class keeps an image to train on.
        seed: of the choice, 0 .. 2**64 - 1; the split depends on it and on the labels alone.

    Returns:
        What is left to train on, and the validation set, both in the order of ``data``.

    Raises:
        SpecError: the share is out of range, or so small that no image would be split off.
    """
    if not 0 < share < 1:
        raise SpecError("The validation share is not usable.", share, "a number in (0, 1)")
    chosen = torch.zeros(len(data), dtype=torch.bool)
    for label in data.labels.unique().tolist():
        places = (data.labels == label).nonzero().flatten()
        order = np.argsort(raw_draws("validation split", seed, label, len(places)), kind="stable")
        count = min(round(share * len(places)), len(places) - 1)
        chosen[places[torch.from_numpy(order[:count])]] = True
    if not chosen.any():
        raise SpecError("The validation share leaves no image for validation.", share, "a larger share, or more images")
    train, val = ((~chosen).nonzero().flatten(), chosen.nonzero().flatten())
    return part_of(data, train, name=f"{data.name}[train]"), part_of(data, val, name=f"{data.name}[val]")


def part_of(data: ImageSet | ImageFiles, places: Tensor, *, name: str | None = None) -> ImageSet | ImageFiles:
    """The images at ``places`` (int64 (M,), M >= 1) in that order, as a set of its own.

    Args:
        data: what to take from; files are not read.
        places: which.
        name: of the part; by default that of the whole.
    """
    if isinstance(data, ImageSet):
        return data.subset(places, name=name)
    chosen = [data.files[place] for place in places.tolist()]
    return ImageFiles(data.root, chosen, data.class_names, transform=data.transform, name=name or data.name)
