"""Class names from where a user has them: a list, a file, a training folder, a network's file, ImageNet's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from dcn_plugin.checkpoint.class_names import ClassNames, check_class_names, class_names_in
from dcn_plugin.errors import DataError

__all__ = ["NamesLike", "read_class_names"]

NamesLike: TypeAlias = "Sequence[str] | str | os.PathLike[str]"
"""What :func:`read_class_names` takes."""

_IMAGENET = "imagenet-1k"
_EXPECTED = (
    "a list of names; a text file with one name a line; a folder with one sub-folder a class; a network's file that "
    f"knows its class names; or {_IMAGENET!r} (its 1,000 WordNet numbers)"
)


def read_class_names(given: NamesLike) -> ClassNames:
    """The names of classes in the order of their labels.

    Args:
        given: the names themselves; or where they stand: a text file with one name a line, a folder whose sub-folders
            are the classes (the training folder), a file of a network that :func:`dcn_plugin.training.train` trained;
            or "imagenet-1k". A text with commas is a list.

    Raises:
        DataError: there is no such file, or it tells no names.
        SpecError: two names are equal, or there is none.
    """
    if not isinstance(given, str | os.PathLike):
        return check_class_names(given)
    if given == _IMAGENET:
        from timm.data import ImageNetInfo

        return check_class_names(ImageNetInfo(_IMAGENET).label_names())
    text = os.fspath(given)
    path = Path(text).expanduser()
    if path.is_dir():
        from dcn_plugin.data.layouts import class_folders

        return check_class_names(class_folders(path))
    if path.is_file():
        return _in_file(path)
    if "," in text:
        return check_class_names(name.strip() for name in text.strip("[]()").split(","))
    raise DataError("There are no class names there.", text, _EXPECTED)


def _in_file(path: Path) -> ClassNames:
    names: Sequence[str] | None
    if path.suffix == ".safetensors":
        names = class_names_in(path)
    else:
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read.", f"{type(error).__name__}: {error}", _EXPECTED) from error
    if not names:
        raise DataError("This file tells no class names.", str(path), _EXPECTED)
    return check_class_names(names)
