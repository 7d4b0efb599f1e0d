"""Image folders: one sub-folder a class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dcn_plugin.data.decode import EvalTransform, Interpolation
from dcn_plugin.data.image_files import EXTENSIONS, ImageFiles, LabelledFile, evenly_spaced, images_under
from dcn_plugin.data.layouts import (
    annotated_files,
    check_class_level,
    check_training_folder,
    class_folders,
    few,
    layout,
)
from dcn_plugin.data.names import NamesLike, read_class_names
from dcn_plugin.errors import DataError, warn_caller

__all__ = ["ImageFolder", "labelled_files"]


class ImageFolder(ImageFiles):
    """A folder of labelled images, ``root/<class>/.../<image>.png``, decoded batch by batch.

    Classes are numbered, and images ordered, as torchvision's ImageFolder does it: by name. Names that begin
    with a dot are passed over. A folder that holds some of the classes of a network only, or names them otherwise,
    numbers them otherwise: pass ``class_names``. Tiny-ImageNet's validation part (``images`` beside
    ``val_annotations.txt``) is read as it is published.

    Example::

        val = ImageFolder("photos/val", size=64, class_names="photos/train")  # numbered as in training

    Args:
        root: the folder that holds the classes.
        size: height and width of the images, one int for a square. None: they all have one size, and keep it.
        resize: the shorter side before the centre is cut out; see :class:`EvalTransform`. ``size=224, resize=256``
            is how torchvision tests ImageNet networks; None cuts away nothing but the surplus of the aspect ratio.
        channels: 3, or 1 for grey.
        interpolation: "bilinear" or "bicubic".
        name: as it appears in result records; the folder's name by default.
        limit: this many images, spread evenly over the whole set (the first would all be of the first class).
        class_names: the classes of the network in the order of its logits; the folder may hold some of them only. A
            list, or where they stand (:func:`~dcn_plugin.data.read_class_names`): a text file, the training folder, the
            network's file, "imagenet-1k". Folders that are all the labels in digits are taken for them. None: the
            sub-folders are the classes.
        threads: how many files are decoded at a time.

    Raises:
        DataError: there is no such folder, no class or no image in it; a class has no image; a sub-folder that is not
            in ``class_names``; images of two sizes without ``size``. Without ``class_names`` also: sub-folders that are
            parts of a data set (train, val), or severities (ImageNet-C), and no classes.
        ClassesError: without ``class_names``, where the folder ``train`` beside it has other classes.
        SpecError: an option out of range.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        size: int | tuple[int, int] | None = None,
        resize: int | None = None,
        channels: Literal[1, 3] = 3,
        interpolation: Interpolation = "bilinear",
        name: str | None = None,
        limit: int | None = None,
        class_names: NamesLike | None = None,
        threads: int = 4,
    ) -> None:
        transform = EvalTransform(size, resize, channels, interpolation)
        folder = Path(root)
        classes, files = labelled_files(folder, class_names=class_names)
        super().__init__(
            folder,
            [files[index] for index in evenly_spaced(len(files), limit)],
            classes,
            transform=transform,
            name=name or folder.resolve().name,
            threads=threads,
        )


def labelled_files(root: Path, *, class_names: NamesLike | None = None) -> tuple[tuple[str, ...], list[LabelledFile]]:
    """The classes of an image folder and its files, in their order.

    Args:
        root: the folder that holds the classes.
        class_names: the classes in the order of their labels; they need not all have images. None: the
            sub-folders, and each must have one.

    Raises:
        DataError: see :class:`ImageFolder`.
    """
    folders = class_folders(root)
    given = None if class_names is None else read_class_names(class_names)
    annotated = annotated_files(root)
    if annotated is not None:
        folders = sorted(set(annotated.values()))
    elif given is None:
        check_class_level(root, folders)
    if given is None:
        check_training_folder(root, folders)
        _warn_of_numbers(root, folders)
    classes = tuple(folders) if given is None else given
    number = _numbers(folders, classes)
    unknown = [name for name in folders if name not in number]
    if unknown:
        raise DataError(
            f"{root} holds folders that are no class of class_names.",
            few(unknown),
            f"names among the {len(classes)} classes, e.g. {classes[0]!r}",
            "on the command line class_names are those that the network, or the training images, know; if only the "
            "spelling differs, say so of the network: MODEL,class_names=... with the folders' names in its order",
        )
    if annotated is not None:
        return classes, [LabelledFile(path, number[name]) for path, name in sorted(annotated.items())]
    files, empty = [], []
    for name in folders:
        inside = images_under(root / name)
        files += [LabelledFile(f"{name}/{path}", number[name]) for path in inside]
        if not inside:
            empty.append(name)
    if not files or (empty and given is None):
        raise DataError(
            f"{root} holds classes without an image.",
            few(empty),
            f"{layout(root)}, images ending in {', '.join(EXTENSIONS)}",
            "complete or remove them, or pass class_names= if classes are meant to be missing",
        )
    return classes, files


def _numbers(folders: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """Folder -> label. Folders that are the labels themselves ("0" to "9", or "000" to "999") are taken for them."""
    if set(folders).isdisjoint(classes) and all(name.isdecimal() for name in folders):
        labels = {name: int(name) for name in folders}
        if sorted(labels.values()) == list(range(len(classes))):
            return labels
    return {name: label for label, name in enumerate(classes)}


def _warn_of_numbers(root: Path, names: Sequence[str]) -> None:
    """Warn where classes are numbers, and sorting them as text numbers them otherwise."""
    if all(name.isdecimal() for name in names) and sorted(names, key=int) != list(names):
        place = next(place for place, name in enumerate(sorted(names, key=int)) if names[place] != name)
        warn_caller(
            f"The classes of {root} are numbers, and sorted as text, as torchvision does it: label {place} is the "
            f"folder {names[place]!r}. For a network that takes the folders' names for labels pass "
            "class_names=[str(n) for n in range(...)], or a file of these names.",
        )
