"""Folders that look like image folders and are not: parts of a data set, severities; Tiny-ImageNet's val."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcn_plugin.errors import ClassesError, DataError

__all__ = ["annotated_files", "check_class_level", "check_training_folder", "class_folders", "few", "layout"]

_PARTS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
_TRAINING = ("train", "training")
_SEVERITIES = {"1", "2", "3", "4", "5"}
_ANNOTATIONS = "val_annotations.txt"


def class_folders(root: Path) -> list[str]:
    """Names of the sub-folders of an image folder, sorted.

    Raises:
        DataError: there is no such folder, or nothing in it.
    """
    if not root.is_dir():
        raise DataError("There is no such image folder.", str(root), layout(root))
    names = _inside(root)
    if not names:
        raise DataError("The image folder has no sub-folder for any class.", str(root), layout(root))
    return names


def annotated_files(root: Path) -> dict[str, str] | None:
    """Image -> class of Tiny-ImageNet's validation part, ``root/images`` and ``root/val_annotations.txt``.

    Returns:
        Paths relative to ``root`` in the order of the file; None where ``root`` is not laid out so.

    Raises:
        DataError: a line of the file that names no image and class.
    """
    notes = root / _ANNOTATIONS
    if not notes.is_file() or not root.is_dir() or _inside(root) != ["images"]:
        return None
    class_of = {}
    for number, line in enumerate(notes.read_text(encoding="utf-8").splitlines(), 1):
        image, *rest = line.split("\t")
        if not rest or not image.strip() or not rest[0].strip():
            raise DataError(f"Line {number} of {notes} tells no image and class.", line, "<image>\\t<class>\\t...")
        class_of[f"images/{image.strip()}"] = rest[0].strip()
    if not class_of:
        raise DataError(f"{notes} is empty.", 0, "a line <image>\\t<class>\\t... an image")
    return class_of


def check_class_level(root: Path, names: Sequence[str]) -> None:
    """Check that the sub-folders of an image folder look like classes, and not like what holds classes.

    Args:
        root: the image folder.
        names: of its sub-folders.

    Raises:
        DataError: they are parts of a data set (train, val, test), the severities 1 to 5 of ImageNet-C, or one folder
            "images" for all.
    """
    parts = [name for name in names if name.lower() in _PARTS]
    advice = "if these are classes indeed, pass class_names="
    if len(parts) == len(names) or len(parts) > 1:
        raise DataError(
            f"The sub-folders of {root} are parts of a data set, not classes.",
            few(names),
            layout(root),
            f"open one of them, e.g. {root / parts[0]}; {advice}",
        )
    if names == ["images"]:
        raise DataError(
            f"{root} holds one folder 'images' and no class.",
            few(names),
            f"{layout(root)}, or images beside Tiny-ImageNet's {_ANNOTATIONS}",
            f"sort the images into class folders; {advice}",
        )
    if len(names) > 1 and set(names) <= _SEVERITIES:
        inner = [set(_inside(root / name)) for name in names]
        if len(set.intersection(*inner)) > 1:
            raise DataError(
                f"The sub-folders of {root} are severities, as in ImageNet-C: each holds the same folders.",
                few(names),
                layout(root),
                f"open one of them, e.g. {root / names[-1]}; {advice}",
            )


def check_training_folder(root: Path, names: Sequence[str]) -> None:
    """Check an image folder against the training folder beside it, which says how a network numbers the classes.

    Raises:
        ClassesError: there is a folder ``train`` beside ``root`` that has other classes.
    """
    here = root.absolute()  # not resolved: of a link it is the place where the user sees it that counts
    for beside in _TRAINING:
        training = here.parent / beside
        if training == here or not training.is_dir():
            continue
        classes = _inside(training)
        if len(classes) > 1 and classes != list(names):
            missing, new = sorted(set(classes) - set(names)), sorted(set(names) - set(classes))
            raise ClassesError(
                f"{root} does not have the classes of the training folder beside it, so their numbers would differ.",
                {"only in the training folder": few(missing)} | ({"only here": few(new)} if new else {}),
                f"the {len(classes)} classes of {training}",
                f"pass class_names={str(training)!r} to number them as training did, or class_names= of your own",
            )


def layout(root: Path) -> str:
    """How an image folder is laid out, in words."""
    return f"{root}/<class>/<image>.png, one sub-folder a class"


def few(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _inside(folder: Path) -> list[str]:
    # Sorted, for the order in which a file system lists names is its own affair.
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
