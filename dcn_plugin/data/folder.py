"""Image folders: one sub-folder a class, as torchvision's ImageFolder reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from dcn_plugin.data.decode import EvalTransform, Interpolation
from dcn_plugin.data.imagefiles import EXTENSIONS, ImageFiles, LabelledFile, evenly_spaced, images_under
from dcn_plugin.errors import DataError

__all__ = ["ImageFolder", "class_folders", "labelled_files"]


class ImageFolder(ImageFiles):
    """A folder of labelled images, ``root/<class>/.../<image>.png``, decoded batch by batch.

    Classes are numbered, and images ordered, as torchvision's ImageFolder does it: by name. Names that begin
    with a dot are passed over.

    Args:
        root: the folder that holds the classes.
        size: height and width of the images, one int for a square. None: they all have one size, and keep it.
        resize: the shorter side before the centre is cut out; see :class:`EvalTransform`. ``size=224, resize=256``
            is how torchvision tests ImageNet networks; None cuts away nothing but the surplus of the aspect ratio.
        channels: 3, or 1 for grey.
        interpolation: "bilinear" or "bicubic".
        name: as it appears in result records; the folder's name by default.
        limit: so many images, spread evenly over the whole set (the first would all be of the first class).
        class_names: the classes of the network, in its order, where the folder holds some of them only.
        threads: how many files are decoded at a time.

    Raises:
        DataError: there is no such folder, no class or no image in it; a class has no image; a sub-folder that is not
            in ``class_names``; images of two sizes without ``size``.
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
        class_names: Sequence[str] | None = None,
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


def class_folders(root: Path) -> list[str]:
    """Names of the sub-folders of an image folder, sorted.

    Raises:
        DataError: there is no such folder, or nothing in it.
    """
    if not root.is_dir():
        raise DataError("There is no such image folder.", str(root), _layout(root))
    # Sorted, for the order in which a file system lists names is its own affair.
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError("The image folder has no sub-folder for any class.", str(root), _layout(root))
    return names


def labelled_files(
    root: Path, *, class_names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[LabelledFile]]:
    """The classes of an image folder and its files, in their order.

    Args:
        root: the folder that holds the classes.
        class_names: the classes in the order of their labels; they need not all have images. None: the
            sub-folders, and each must have one.

    Raises:
        DataError: see :class:`ImageFolder`.
    """
    found = class_folders(root)
    classes = tuple(found if class_names is None else class_names)
    unknown = [name for name in found if name not in set(classes)]
    if unknown:
        raise DataError(
            f"{root} holds folders that are no class of class_names.",
            _few(unknown),
            f"names among the {len(classes)} classes, e.g. {classes[0]!r}" if classes else "at least one class",
        )
    number = {name: label for label, name in enumerate(classes)}
    files, empty = [], []
    for name in found:
        inside = images_under(root / name)
        files += [LabelledFile(f"{name}/{path}", number[name]) for path in inside]
        if not inside:
            empty.append(name)
    if not files or (empty and class_names is None):
        raise DataError(
            f"{root} holds classes without an image.",
            _few(empty),
            f"{_layout(root)}, images ending in {', '.join(EXTENSIONS)}",
            "complete or remove them, or pass class_names= if classes are meant to be missing",
        )
    return classes, files


def _layout(root: Path) -> str:
    return f"{root}/<class>/<image>.png, one sub-folder a class"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
