"""Data sets in files of other formats, read into memory: npz, IDX (MNIST), and what torchvision keeps on disk."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import datasets

from dcn_plugin.data.imageset import ImageSet
from dcn_plugin.data.labels import class_numbers
from dcn_plugin.data.names import NamesLike, read_class_names
from dcn_plugin.errors import DataError, DcnError, ImageRangeError, MissingExtraError, SpecError
from dcn_plugin.support.arguments import check_choice

__all__ = [
    "Layout",
    "TorchvisionName",
    "find_idx",
    "load_mnist_idx",
    "load_npz",
    "load_torchvision",
    "npz_splits",
]

Layout = Literal["auto", "NCHW", "NHWC"]
TorchvisionName = Literal["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "SVHN"]

_CLASSES = {"CIFAR10": 10, "CIFAR100": 100, "MNIST": 10, "FashionMNIST": 10, "SVHN": 10}
_DIGITS = tuple("0123456789")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# As Zalando's repository names them; torchvision's are the same.
_FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_LAYOUTS = {
    "CIFAR10": "{root}/cifar-10-batches-py/ with data_batch_1 .. data_batch_5, test_batch and batches.meta, unchanged",
    "CIFAR100": "{root}/cifar-100-python/ with train, test and meta, unchanged",
    "SVHN": "{root}/{split}_32x32.mat, unchanged",
}
_NPZ = (
    "an .npz file with the arrays images and labels, or <split>_images and <split>_labels (MedMNIST), or x_<split> and "
    "y_<split> (Keras), written without pickling"
)
_UNSIGNED_BYTE = 8  # the IDX code of the only element type these sets use


def load_npz(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    images_key: str | None = None,
    labels_key: str | None = None,
    layout: Layout = "auto",
    channels: Literal[1, 3] | None = None,
    num_classes: int | None = None,
    class_names: NamesLike | None = None,
    name: str | None = None,
) -> ImageSet:
    """Read the images and labels of an .npz file. Nothing is unpickled.

    The arrays are ``images`` and ``labels``; or, for one of several parts in a file, ``test_images`` and
    ``test_labels`` (MedMNIST) or ``x_test`` and ``y_test`` (Keras), with "test" the split.

    Args:
        path: the file. Images are uint8, or floating point within [0, 1]; (N, H, W) is grey. Labels are numbers of
            any type without a fraction, (N,) or (N, 1).
        split: which part of a file that holds several, e.g. "train", "val", "test".
        images_key: name of the array of images, where it is another one.
        labels_key: name of the array of labels.
        layout: where the channels are. "auto" looks for an axis of 1 or 3: the second is NCHW, the last NHWC; if
            both are, or neither is, the layout has to be given.
        channels: 1 turns colours into grey, 3 grey into three equal channels; None leaves them.
        num_classes: how many classes there are; by default as many as ``class_names``, or one more than the largest
            label in any part of the file. Evaluators compare it with the number of logits, so give it where the file
            lacks the last classes.
        class_names: what the classes are called, in the order of their labels; see :func:`read_class_names`.
        name: as it appears in result records; the file's name without its ending by default, with the split.

    Raises:
        DataError: no such file, no .npz file, no such arrays, no image at all, or an ambiguous layout.
        ImageRangeError: images of another type, or outside [0, 1].
        LabelError: labels that are no whole numbers, or too few or too many of them.
        SpecError: an unknown layout, a part that has to be named, or class names that do not fit.
    """
    check_choice("image layout", layout, Layout)
    file = Path(path)
    # NumPy leaves a file open that it cannot read.
    with _npz_errors(file), open(file, "rb") as stream:
        content = np.load(stream, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise DataError(f"{file} holds a single array.", "an .npy file", _NPZ)
        keys = _npz_keys(file, content.files, split, images_key, labels_key)
        images, labels = content[keys[0]], content[keys[1]]
        others = [content[key] for key in _label_keys(content.files, keys[1])]
    numbers = class_numbers(labels, source=str(file))
    names = None if class_names is None else read_class_names(class_names)
    if num_classes is None:
        parts = [numbers, *(class_numbers(other, source=str(file)) for other in others)]
        num_classes = max(int(part.max()) + 1 if len(part) else 0 for part in parts) if names is None else len(names)
    data = ImageSet(
        _pixels(_channels_first(images, layout, file), file),
        numbers,
        num_classes,
        name or (f"{file.stem}/{split}" if split else file.stem),
        names,
    )
    return data if channels is None else data.in_channels(channels)


def npz_splits(path: str | os.PathLike[str]) -> list[str]:
    """The parts that an .npz file holds side by side, e.g. ["train", "val", "test"]; empty where it holds one.

    Raises:
        DataError: it cannot be read.
    """
    file = Path(path)
    with _npz_errors(file), open(file, "rb") as stream:
        content = np.load(stream, allow_pickle=False)
        keys = content.files if isinstance(content, np.lib.npyio.NpzFile) else []
    return [] if {"images", "labels"} <= set(keys) else _splits(keys)


@contextlib.contextmanager
def _npz_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DcnError):
            raise
        raise DataError(f"{file} cannot be read.", f"{type(error).__name__}: {error}", _NPZ) from error


def _splits(keys: Sequence[str]) -> list[str]:
    """Parts that have both images and labels, in MedMNIST's notation or in Keras'."""
    stems = [key.removesuffix("_images") for key in keys if key.endswith("_images")]
    stems += [key.removeprefix("x_") for key in keys if key.startswith("x_")]
    return [split for split in dict.fromkeys(stems) if any(pair[1] in keys for pair in _pairs(split))]


def _pairs(split: str) -> list[tuple[str, str]]:
    return [(f"{split}_images", f"{split}_labels"), (f"x_{split}", f"y_{split}")]


def _label_keys(keys: Sequence[str], labels_key: str) -> list[str]:
    """The labels of the other parts of a file."""
    if not any(labels_key in pair for split in _splits(keys) for pair in _pairs(split)):
        return []
    return [labels for split in _splits(keys) for _, labels in _pairs(split) if labels in keys and labels != labels_key]


def _npz_keys(
    file: Path, keys: Sequence[str], split: str | None, images_key: str | None, labels_key: str | None
) -> tuple[str, str]:
    """Names of the arrays of images and of labels."""
    splits = _splits(keys)
    pairs = [("images", "labels")] if split is None else _pairs(split)
    chosen = next((pair for pair in pairs if set(pair) <= set(keys)), None)
    images, labels = images_key or (chosen or ("", ""))[0], labels_key or (chosen or ("", ""))[1]
    if images in keys and labels in keys:
        return images, labels
    if splits and split not in splits and images_key is None and labels_key is None:
        raise SpecError(
            f"{file} holds several parts." if split is None else f"{file} has no part {split!r}.",
            split,
            ", ".join(map(repr, splits)),
            f"pass split={splits[-1]!r}",
        )
    raise DataError(f"{file} lacks arrays.", sorted(keys), _NPZ, "name them: images_key=..., labels_key=...")


def load_mnist_idx(
    images: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    *,
    num_classes: int = 10,
    name: str | None = None,
    class_names: NamesLike | None = None,
) -> ImageSet:
    """Read a data set in MNIST's own format, IDX, gzipped or not.

    Args:
        images: e.g. ``t10k-images-idx3-ubyte.gz``.
        labels: e.g. ``t10k-labels-idx1-ubyte.gz``.
        num_classes: how many classes there are.
        name: as it appears in result records; the name of the image file's folder and set by default.
        class_names: what the classes are called, in the order of their labels; see :func:`read_class_names`.

    Returns:
        Images (N, 1, H, W).

    Raises:
        DataError: no such file, or it is not IDX of unsigned bytes, whole, with the right number of axes.
        LabelError: labels out of range, or not as many as images.

    Source: Y. LeCun et al., "The MNIST database of handwritten digits" (the format is described there).
    """
    pixels = _read_idx(Path(images), axes=3)
    return ImageSet(
        torch.from_numpy(pixels).unsqueeze(1).float().div_(255),
        torch.from_numpy(_read_idx(Path(labels), axes=1)).long(),
        num_classes,
        name or Path(images).name.partition("-images")[0],
        None if class_names is None else read_class_names(class_names),
    )


def load_torchvision(name: TorchvisionName, root: str | os.PathLike[str], *, train: bool = False) -> ImageSet:
    """Read a data set that torchvision has downloaded before; nothing is downloaded here.

    The files of CIFAR are pickles. torchvision unpickles them itself, after it has compared their MD5 sums with
    those of the published files. The other sets need no unpickling: MNIST and FashionMNIST are read as IDX.

    Args:
        name: the data set.
        root: what was given to torchvision as ``root``; for the two MNISTs also the folder of the IDX files.
        train: the training images instead of the test images.

    Raises:
        DataError: the files are missing or differ from the published ones; the message shows the layout.
        MissingExtraError: SVHN needs scipy, which is not installed.
        SpecError: an unknown data set.
    """
    check_choice("torchvision data set", name, TorchvisionName)
    split = "train" if train else "test"
    title = f"{name.lower()}/{split}"
    if name in ("MNIST", "FashionMNIST"):
        images, labels = find_idx(Path(root), name, train=train)
        return load_mnist_idx(images, labels, name=title, class_names=_DIGITS if name == "MNIST" else _FASHION)
    pixels, classes, names = _svhn(root, split) if name == "SVHN" else _cifar(name, root, train=train)
    return ImageSet(_pixels(pixels, Path(root)), torch.as_tensor(classes).long(), _CLASSES[name], title, names)


def find_idx(root: Path, name: str, *, train: bool = False) -> tuple[Path, Path]:
    """Image and label file of MNIST or one of its successors.

    Args:
        root: torchvision's root, or the folder that holds the files themselves, gzipped or not.
        name: the folder below torchvision's root, "MNIST" or "FashionMNIST".
        train: the training images instead of the test images.

    Raises:
        DataError: they are not there; the message shows the layout.
    """
    prefix = "train" if train else "t10k"
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    for folder in (root / name / "raw", root):
        files = [[path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()] for stem in stems]
        if all(files):
            return files[0][0], files[1][0]
    raise DataError(
        f"{name} is not in this folder.",
        str(root),
        f"{stems[0]} and {stems[1]}, with or without .gz, in {root / name / 'raw'} or in {root}",
    )


def _read_idx(path: Path, *, axes: int) -> npt.NDArray[np.uint8]:
    expected = f"an IDX file of unsigned bytes with {axes} axes, gzipped or not"
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read.", f"{type(error).__name__}: {error}", expected) from error
    head = 4 + 4 * axes
    magic = bytes([0, 0, _UNSIGNED_BYTE, axes])
    if content[:4] != magic or len(content) < head:
        raise DataError(f"{path} is not such an IDX file.", content[:4].hex(), f"{expected}: it begins {magic.hex()}")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    if len(content) != head + math.prod(shape):
        raise DataError(
            f"{path} is not whole.",
            f"{len(content)} bytes",
            f"{head + math.prod(shape)} bytes for the shape {shape}",
            "download it again",
        )
    # A copy: an array over `bytes` is read-only, which torch warns about.
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy()


def _channels_first(images: npt.NDArray[np.generic], layout: Layout, file: Path) -> npt.NDArray[np.generic]:
    if images.ndim == 3:
        return images[:, np.newaxis]
    if images.ndim != 4:
        raise DataError(f"The images of {file} have the wrong shape.", images.shape, "(N, C, H, W) or (N, H, W, C)")
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if layout == "auto" and first == last:
        raise DataError(
            f"The images of {file} do not show which axis holds the channels.",
            images.shape,
            "1 or 3 in the second axis (NCHW) or in the last (NHWC), not in both",
            "pass layout='NCHW' or layout='NHWC'",
        )
    channels_last = layout == "NHWC" or (layout == "auto" and last)
    return images.transpose(0, 3, 1, 2) if channels_last else images


def _pixels(images: npt.NDArray[np.generic], source: Path) -> Tensor:
    """uint8 or floating point -> float32; the range is the ImageSet's to check."""
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images)).float().div_(255)
    if not np.issubdtype(images.dtype, np.floating):
        raise ImageRangeError(
            f"The images of {source} have the wrong type.", str(images.dtype), "uint8, or floating point in [0, 1]"
        )
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))


_Read = tuple[npt.NDArray[np.uint8], Any, tuple[str, ...] | None]


def _cifar(name: str, root: str | os.PathLike[str], *, train: bool) -> _Read:
    try:
        data = getattr(datasets, name)(root, train=train, download=False)
    except RuntimeError as error:
        raise _missing(name, root, "") from error
    names = tuple(data.classes) if len(set(data.classes)) == _CLASSES[name] else None
    return data.data.transpose(0, 3, 1, 2), data.targets, names


def _svhn(root: str | os.PathLike[str], split: str) -> _Read:
    try:
        data = datasets.SVHN(root, split=split, download=False)
    except RuntimeError as error:
        raise _missing("SVHN", root, split) from error
    except ImportError as error:
        raise MissingExtraError("SVHN is stored as .mat, which scipy reads.", fix="pip install scipy") from error
    return data.data, data.labels, _DIGITS  # torchvision has turned the label 10 of the file into 0


def _missing(name: str, root: str | os.PathLike[str], split: str) -> DataError:
    return DataError(
        f"{name} is not in this folder, or its files differ from the published ones.",
        os.fspath(root),
        _LAYOUTS[name].format(root=os.fspath(root), split=split),
        f"fetch it once with torchvision.datasets.{name}(root, download=True)",
    )
