"""Data sets by name, for the command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from dcn_plugin.data.array_files import TorchvisionName, load_npz, load_torchvision, npz_splits
from dcn_plugin.data.digits import load_digits
from dcn_plugin.data.formats import load_cifar_c, load_stl10
from dcn_plugin.data.image_folder import ImageFolder
from dcn_plugin.data.imageset import ImageSet
from dcn_plugin.data.names import NamesLike, read_class_names
from dcn_plugin.data.source import IndexedImages
from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import check_choice
from dcn_plugin.support.suggestions import closest

__all__ = ["DATA_SPECS", "DataPart", "folder_options", "open_images", "parts_of", "split_options"]

DataPart = Literal["train", "val", "test"]

DATA_SPECS = {
    "digits": "scikit-learn's digits; digits:train, digits:val and digits:test are their parts",
    "folder:PATH": "PATH/<class>/<image>.png, Tiny-ImageNet's val too; options class_names, channels, interpolation",
    "npz:PATH": "a file with the arrays images and labels, or MedMNIST's or Keras' names; options split, images_key, "
    "labels_key, layout, num_classes, class_names",
    "cifar10:ROOT": "torchvision's root",
    "cifar100:ROOT": "torchvision's root",
    "cifar10c:ROOT": "folder of labels.npy and <corruption>.npy; options corruption, severity",
    "cifar100c:ROOT": "the same of CIFAR-100-C",
    "mnist:ROOT": "torchvision's root or the folder of the IDX files",
    "fashionmnist:ROOT": "torchvision's root or the folder of the IDX files",
    "stl10:ROOT": "folder of stl10_binary, or of its files",
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
# What a kind takes besides channels and class_names.
_OPTIONS = {
    "folder": ("interpolation",),
    "npz": ("split", "images_key", "labels_key", "layout", "num_classes"),
    "cifar10c": ("corruption", "severity"),
    "cifar100c": ("corruption", "severity"),
}
# With one of these the text itself says which part of an npz file is meant.
_OWN_PART = {"split", "images_key", "labels_key"}
_DIGITS_SIZE = 16


def open_images(
    spec: str,
    *,
    part: DataPart = "test",
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    limit: int | None = None,
    channels: Literal[1, 3] | None = None,
    class_names: NamesLike | None = None,
) -> IndexedImages:
    """Open a data set by what a user writes on the command line.

    Examples::

        open_images("folder:photos/val,class_names=photos/train", size=64)
        open_images("npz:pneumoniamnist.npz,channels=3", part="train")
        open_images("cifar10c:CIFAR-10-C,corruption=fog,severity=3")

    Args:
        spec: one of :data:`DATA_SPECS`, e.g. "digits" or "folder:imagenet/val", and options behind it, each as
            ",key=value": "channels" and "class_names" (as below), and those that :data:`DATA_SPECS` names.
        part: of a data set that has parts: "train" or "test", and "val" of the digits and of npz files that have it.
            What ``spec`` itself names (digits:train, a folder, npz:FILE,split=...) is taken as it is.
        size: height and width. Folders are resized and cut to it, digits are made in it (16 by default); the others
            have the size they have, and another one is an error.
        resize: for folders, the shorter side before the centre is cut out, e.g. 256 with ``size=224``.
        limit: this many images (>= 1): the first of a set in memory; spread evenly over a folder, whose first images
            would all be of one class.
        channels: 1 for grey, 3 for RGB; None: folders give 3, the others what they have. An option in ``spec`` wins.
        class_names: the classes of the network, in the order of its logits; images are numbered by them, and may be of
            some of them only. For an npz file: what its numbers are called. See
            :func:`~dcn_plugin.data.read_class_names`. An option in ``spec`` wins.

    Raises:
        SpecError: an unknown data set, a part that it does not have, or an option that does not fit it.
        DataError: the data are not there; the message shows the layout.
        ClassesError: its classes are not those of ``class_names``.
    """
    check_choice("part of a data set", part, DataPart)
    if limit is not None and limit < 1:
        raise SpecError("The limit leaves no image.", limit, "an int >= 1, or None for all")
    head, options = split_options(spec)
    kind, _, rest = head.partition(":")
    _check_options((*_OPTIONS.get(kind, ()), "channels", "class_names"), head, options)
    channels = _channels(options.pop("channels", channels))
    names: NamesLike | None = options.pop("class_names", class_names)
    if kind == "folder" and rest:
        more: dict[str, Any] = {**options, "class_names": names, **({} if channels is None else {"channels": channels})}
        return ImageFolder(_path(rest), size=size, resize=resize, limit=limit, **more)
    if resize is not None:
        raise SpecError("Only image folders can be resized.", {"data": spec, "resize": resize}, "folder:PATH")
    if kind == "npz" and rest:
        data = _npz(_path(rest), part, names, options)
    else:
        data = _in_memory(spec, kind, rest, part, size, options)
        if names is not None:
            data = data.numbered(read_class_names(names))
    if channels is not None:
        data = data.in_channels(channels)
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


def parts_of(spec: str) -> tuple[DataPart, ...]:
    """The parts that a data set has, for ``part`` of :func:`open_images`; none where ``spec`` names the images itself.

    Raises:
        DataError: an npz file that cannot be read.
    """
    head, options = split_options(spec)
    kind, _, rest = head.partition(":")
    if kind == "digits":
        return () if rest else get_args(DataPart)
    if kind in _TORCHVISION or kind == "stl10":
        return ("train", "test")
    if kind == "npz" and not options.keys() & _OWN_PART:
        there = npz_splits(_path(rest))
        return tuple(part for part in get_args(DataPart) if part in there)
    return ()


def split_options(spec: str) -> tuple[str, dict[str, str]]:
    """Split ``folder:PATH,key=value,key=value``; a comma that no "key=" follows belongs to what stands before it.

    Returns:
        What stands before the first option, and the options as text.

    Raises:
        SpecError: an option stands there twice.
    """
    head, *pairs = re.split(r",(?=[A-Za-z_]+=)", spec)
    options = dict(pair.split("=", 1) for pair in pairs)
    if len(options) < len(pairs):
        raise SpecError("An option stands there twice.", spec, "each key once")
    return head, options


def folder_options(spec: str, known: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """A folder and its options: ``PATH,key=value``, with or without "folder:" in front.

    Args:
        spec: what was written.
        known: options that fit.

    Raises:
        SpecError: an option that is not among them, or is not usable.
    """
    head, texts = split_options(spec.removeprefix("folder:"))
    _check_options(known, head, texts)
    options: dict[str, Any] = dict(texts)
    if "channels" in options:
        options["channels"] = _channels(options["channels"])
    return str(_path(head)), options


def _check_options(allowed: Sequence[str], head: str, options: Mapping[str, str]) -> None:
    for key in options:
        if key not in allowed:
            raise SpecError(f"{head} has no option {key!r}.", key, ", ".join(allowed), closest(key, allowed))


def _channels(given: str | int | None) -> Literal[1, 3] | None:
    if given is not None and given not in (1, 3, "1", "3"):
        raise SpecError("Unknown number of channels.", given, "1 (grey), 3 (RGB)")
    return None if given is None else 1 if int(given) == 1 else 3


def _npz(path: Path, part: str, names: NamesLike | None, options: dict[str, str]) -> ImageSet:
    more: dict[str, Any] = dict(options)
    if "num_classes" in more:
        more["num_classes"] = _number("num_classes", more["num_classes"])
    if not more.keys() & _OWN_PART and npz_splits(path):
        more["split"] = part
    return load_npz(path, class_names=names, **more)


def _number(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SpecError(f"{key} is a number.", text, "an int") from None


def _in_memory(
    spec: str, kind: str, rest: str, part: str, size: int | tuple[int, int] | None, options: Mapping[str, str]
) -> ImageSet:
    if kind == "digits" and rest in ("", "train", "val", "test"):
        if isinstance(size, tuple) and size[0] != size[1]:
            raise SpecError("The digits are square.", size, "one int")
        side = size[0] if isinstance(size, tuple) else size
        splits = load_digits(size=_DIGITS_SIZE if side is None else side)
        chosen: ImageSet = getattr(splits, rest or part)
        return chosen
    if rest and kind in ("cifar10c", "cifar100c"):
        severity = _number("severity", options["severity"]) if "severity" in options else None
        classes: Literal[10, 100] = 10 if kind == "cifar10c" else 100
        return load_cifar_c(_path(rest), options.get("corruption", ""), severity=severity, num_classes=classes)
    if rest and (kind in _TORCHVISION or kind == "stl10"):
        if part == "val":
            raise SpecError(
                f"{kind} has no validation part.", spec, "its train or test part", "split a share off the train part"
            )
        if kind == "stl10":
            return load_stl10(_path(rest), train=part == "train")
        return load_torchvision(_TORCHVISION[kind], _path(rest), train=part == "train")
    raise SpecError(
        "Unknown data set.",
        spec,
        "; ".join(f"{form} ({meaning})" for form, meaning in DATA_SPECS.items()),
    )


def _path(text: str) -> Path:
    # A shell expands "~" only at the start of a word, not after "folder:".
    return Path(text).expanduser()
