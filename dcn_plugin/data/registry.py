"""Data sets by name, for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch

from dcn_plugin.data.digits import load_digits
from dcn_plugin.data.files import TorchvisionName, load_npz, load_torchvision
from dcn_plugin.data.folder import ImageFolder
from dcn_plugin.data.imageset import ImageSet
from dcn_plugin.data.source import IndexedImages
from dcn_plugin.errors import SpecError

__all__ = ["DATA_SPECS", "DataPart", "open_images"]

DataPart = Literal["train", "val", "test"]

DATA_SPECS = {
    "digits": "scikit-learn's digits; digits:train, digits:val and digits:test are their parts",
    "folder:PATH": "PATH/<class>/<image>.png",
    "npz:PATH": "a file with the arrays images and labels",
    "cifar10:ROOT": "torchvision's root",
    "cifar100:ROOT": "torchvision's root",
    "mnist:ROOT": "torchvision's root or the folder of the IDX files",
    "fashionmnist:ROOT": "torchvision's root or the folder of the IDX files",
    "svhn:ROOT": "torchvision's root",
}
"""What :func:`open_images` understands, and what each is."""

_TORCHVISION: dict[str, TorchvisionName] = {
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "mnist": "MNIST",
    "fashionmnist": "FashionMNIST",
    "svhn": "SVHN",
}
_DIGITS_SIZE = 16


def open_images(
    spec: str,
    *,
    part: DataPart = "test",
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    limit: int | None = None,
) -> IndexedImages:
    """Open a data set by what a user writes on the command line.

    Args:
        spec: one of :data:`DATA_SPECS`, e.g. "digits" or "folder:imagenet/val".
        part: of a data set that has parts: "train" or "test", and "val" of the digits. What ``spec`` itself names
            (digits:train, a folder, an npz file) is taken as it is.
        size: height and width. Folders are resized and cut to it, digits are made in it (16 by default); the others
            have the size they have, and another one is an error.
        resize: for folders, the shorter side before the centre is cut out, e.g. 256 with ``size=224``.
        limit: so many images, at least 1: the first of a set in memory; spread evenly over a folder, whose first images
            would all be of one class.

    Raises:
        SpecError: an unknown data set, a part that it does not have, or an option that does not fit it.
        DataError: the data are not there; the message shows the layout.
    """
    if part not in get_args(DataPart):
        raise SpecError("Unknown part of a data set.", part, ", ".join(map(repr, get_args(DataPart))))
    if limit is not None and limit < 1:
        raise SpecError("The limit leaves no image.", limit, "an int >= 1, or None for all")
    kind, _, rest = spec.partition(":")
    if kind == "folder" and rest:
        return ImageFolder(_path(rest), size=size, resize=resize, limit=limit)
    if resize is not None:
        raise SpecError("Only image folders can be resized.", {"data": spec, "resize": resize}, "folder:PATH")
    data = _in_memory(spec, kind, rest, part, size)
    if size is not None and data.shape[1:] != ((size, size) if isinstance(size, int) else tuple(size)):
        raise SpecError(
            f"The images of {spec!r} are {data.shape[1]} x {data.shape[2]}.",
            size,
            "their own size, or None",
            "only folder:PATH resizes images; give the model this input size",
        )
    if limit is None or limit >= len(data):
        return data
    return data.subset(torch.arange(limit), name=f"{data.name}[:{limit}]")


def _in_memory(spec: str, kind: str, rest: str, part: DataPart, size: int | tuple[int, int] | None) -> ImageSet:
    if kind == "digits" and rest in ("", "train", "val", "test"):
        if isinstance(size, tuple) and size[0] != size[1]:
            raise SpecError("The digits are square.", size, "one int")
        side = size[0] if isinstance(size, tuple) else size
        splits = load_digits(size=_DIGITS_SIZE if side is None else side)
        chosen: ImageSet = getattr(splits, rest or part)
        return chosen
    if kind == "npz" and rest:
        return load_npz(_path(rest))
    if rest and kind in _TORCHVISION:
        if part == "val":
            raise SpecError(
                f"{kind} has no validation part.", spec, "its train or test part", "split a share off the train part"
            )
        return load_torchvision(_TORCHVISION[kind], _path(rest), train=part == "train")
    raise SpecError(
        "Unknown data set.",
        spec,
        "; ".join(f"{form} ({meaning})" for form, meaning in DATA_SPECS.items()),
    )


def _path(text: str) -> Path:
    # A shell expands "~" only at the start of a word, not after "folder:".
    return Path(text).expanduser()
