"""The data sets of the recipes: where they lie below a root, and how they are opened."""

from __future__ import annotations

import functools
import hashlib
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcn_plugin.data import ImageFiles, ImageFolder, ImageSet, load_digits, load_torchvision, paired_folders
from dcn_plugin.errors import DataError
from dcn_plugin.support.randomness import raw_draws
from dcn_plugin.support.suggestions import check_known
from dcn_plugin.training.split import part_of

__all__ = ["DATA", "SPLIT_MNIST", "DataInfo", "RecipeData", "image_counts", "open_data"]

Images = ImageSet | ImageFiles


@dataclass(frozen=True)
class DataInfo:
    """What a recipe has to know of a data set before it is opened.

    Args:
        title: for people.
        shape: (C, H, W) of the images.
        num_classes: of the networks.
        train_images: number of training images, to tell what training costs.
        test_images: number of test images.
        mean: of the normalisation inside the networks, a number a channel.
        std: likewise.
        layout: what ``--data ROOT`` has to hold, "" for data that come along.
        stylized: whether stylised versions of the test images belong to it.
    """

    title: str
    shape: tuple[int, int, int]
    num_classes: int
    train_images: int
    test_images: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layout: str = ""
    stylized: bool = False


_CIFAR: dict[str, Any] = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

DATA = {
    "digits": DataInfo("digits (scikit-learn)", (1, 32, 32), 10, 1168, 450, (0.5,), (0.5,)),
    "cifar10": DataInfo(
        "CIFAR-10",
        (3, 32, 32),
        10,
        50_000,
        10_000,
        **_CIFAR,
        layout="ROOT/cifar-10-batches-py/ (torchvision's), or ROOT/train/<class>/*.png and ROOT/test/<class>/*.png",
    ),
    "mnist": DataInfo(
        "MNIST",
        (1, 28, 28),
        10,
        60_000,
        10_000,
        (0.1307,),
        (0.3081,),
        layout="ROOT/train-images-idx3-ubyte[.gz] and the three other IDX files, or ROOT/MNIST/raw/ with them; with "
        "the t10k files alone their images are split 8,000 / 2,000",
    ),
    "tiny-imagenet": DataInfo(
        "Tiny-ImageNet",
        (3, 64, 64),
        200,
        100_000,
        10_000,
        **_IMAGENET,
        layout="ROOT/train/<class>/.../*.JPEG and ROOT/val/<class>/.../*.JPEG (val sorted into folders of classes)",
    ),
    "imagenet": DataInfo(
        "ImageNet",
        (3, 224, 224),
        1000,
        1_281_167,
        50_000,
        **_IMAGENET,
        layout="ROOT/train/<class>/*.JPEG, ROOT/val/<class>/*.JPEG, and for the stylised images ROOT/stylized/<class>/ "
        "with the names of val",
        stylized=True,
    ),
}
"""Name -> what is known of it."""

SPLIT_MNIST = "MNIST (test images split 8,000 / 2,000)"
"""Title of the MNIST that is made of its test images alone."""


def image_counts(name: str, title: str = "") -> tuple[int, int]:
    """How many training and test images a data set has, without opening it.

    Args:
        name: one of :data:`DATA`.
        title: which copy of it, see :attr:`RecipeData.title`; "" is the published one.
    """
    return (8_000, 2_000) if title == SPLIT_MNIST else (DATA[name].train_images, DATA[name].test_images)


@dataclass(frozen=True)
class RecipeData:
    """A data set of a recipe; images are read when they are first asked for.

    Args:
        name: a key of :data:`DATA`.
        root: where it lies; None where it comes along.
        kind: which of the layouts was found.
    """

    name: str
    root: Path | None
    kind: str

    @property
    def info(self) -> DataInfo:
        """What is known of it."""
        return DATA[self.name]

    @property
    def title(self) -> str:
        """As it has to be called: an image folder of JPEG files is no CIFAR-10 as published."""
        if self.kind == "folder" and self.name == "cifar10":
            endings = (os.path.splitext(file.name)[1].lower() for file in _files_below(self.root, ("test",)))
            copied = next(filter(None, endings), "") in (".jpg", ".jpeg")
            return "CIFAR-10 (JPEG copy)" if copied else "CIFAR-10 (image folder)"
        return SPLIT_MNIST if self.kind == "t10k" else self.info.title

    @functools.cached_property
    def stamp(self) -> str:
        """Tells apart data sets that lie at other places or were changed, without reading an image.

        Names, sizes and times of the files; for what comes along, its name.
        """
        digest = hashlib.sha256(f"{self.name} {self.kind}".encode())
        for file in _files_below(self.root, ("stylized", "test", "train", "val")):
            status = file.stat()
            digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def train(self, limit: int | None = None) -> Images:
        """The training images, or the first ``limit`` of them."""
        return _first(self._train, limit)

    def test(self, limit: int | None = None) -> Images:
        """The test images, or the first ``limit`` of them; those of a folder are in an order without classes."""
        return _first(self._test, limit)

    def stylized(self, limit: int | None = None) -> tuple[ImageFiles, ImageFiles] | None:
        """Test images and their stylised versions, where the data set has them."""
        if not self.info.stylized or self.root is None:
            return None
        return paired_folders(self.root / "val", self.root / "stylized", size=224, resize=256, limit=limit)

    @functools.cached_property
    def _train(self) -> Images:
        return self._mnist[0] if self.kind == "t10k" else self._open("train", train=True)

    @functools.cached_property
    def _test(self) -> Images:
        return self._mnist[1] if self.kind == "t10k" else self._open("test", train=False)

    @functools.cached_property
    def _mnist(self) -> tuple[Images, Images]:
        assert self.root is not None
        images = load_torchvision("MNIST", self.root)
        cut = len(images) * 4 // 5
        places = torch.arange(len(images))
        return images.subset(places[:cut], name="t10k/train"), images.subset(places[cut:], name="t10k/test")

    def _open(self, part: str, *, train: bool) -> Images:
        if self.root is None:
            splits = load_digits(size=self.info.shape[1])
            return splits.train if train else splits.test
        if self.kind == "published":
            return load_torchvision("CIFAR10" if self.name == "cifar10" else "MNIST", self.root, train=train)
        side = self.info.shape[1]
        resize = 256 if self.name == "imagenet" else None
        folder = self.root / (part if train or self.name == "cifar10" else "val")
        files = ImageFolder(folder, size=side, resize=resize, name=f"{self.name}-folder/{part}")
        order = np.argsort(raw_draws("recipe order", 0, 0, len(files)), kind="stable")
        reordered = part_of(files, torch.from_numpy(order))
        return _in_memory(reordered) if self.name == "cifar10" else reordered


def open_data(name: str, root: str | os.PathLike[str] | None) -> RecipeData:
    """Find a data set; nothing is read yet.

    Args:
        name: one of :data:`DATA`.
        root: where it lies.

    Raises:
        SpecError: an unknown data set.
        DataError: it is not there; the message shows the layout.
    """
    check_known("data set", name, DATA)
    info = DATA[name]
    if not info.layout:
        return RecipeData(name, None, "embedded")
    if root is None:
        raise DataError(f"{info.title} is needed.", None, info.layout, "pass --data ROOT, or --scale smoke")
    folder = Path(root).expanduser()
    kind = _kind(name, folder)
    if kind is None:
        raise DataError(f"{info.title} is not there.", str(folder), info.layout)
    return RecipeData(name, folder, kind)


def _kind(name: str, root: Path) -> str | None:
    if name == "mnist":
        for below in (root, root / "MNIST" / "raw"):
            for start, kind in (("train", "published"), ("t10k", "t10k")):
                if any((below / f"{start}-images-idx3-ubyte{end}").is_file() for end in ("", ".gz")):
                    return kind
        return None
    if name == "cifar10" and (root / "cifar-10-batches-py").is_dir():
        return "published"
    test = "test" if name == "cifar10" else "val"
    return "folder" if all((root / part).is_dir() for part in ("train", test)) else None


def _files_below(root: Path | None, parts: Sequence[str]) -> Iterator[os.DirEntry[str]]:
    """The files in these parts of a folder, or in all of it where it has none of them, in the order of ``parts``."""
    if root is not None:
        for start in [root / part for part in parts if (root / part).is_dir()] or [root]:
            yield from _files_of(start)


def _files_of(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """All files, ordered as pathlib orders their paths."""
    with os.scandir(folder) as listing:
        entries = sorted(listing, key=operator.attrgetter("name"))
    for entry in entries:
        if not entry.is_dir():
            yield entry
        elif not entry.is_symlink():
            yield from _files_of(entry.path)


def _first(images: Images, limit: int | None) -> Images:
    if limit is None or limit >= len(images):
        return images
    return part_of(images, torch.arange(limit), name=f"{images.name}[:{limit}]")


def _in_memory(files: Images) -> ImageSet:
    images, labels = (torch.cat(parts) for parts in zip(*files.batches(1000), strict=True))
    return ImageSet(images, labels, files.num_classes, files.name, files.class_names)
