"""Stylised images on disk: pairs with their originals (Stylized-ImageNet), and cue-conflict images."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import torch

from dcn_plugin.data.decode import EvalTransform, Interpolation
from dcn_plugin.data.image_files import ImageFiles, LabelledFile, evenly_spaced, images_under
from dcn_plugin.data.image_folder import labelled_files
from dcn_plugin.data.layouts import class_folders
from dcn_plugin.data.names import NamesLike, read_class_names
from dcn_plugin.errors import DataError

__all__ = ["CUE_CLASSES", "CueConflict", "paired_folders"]

CUE_CLASSES = (
    "airplane",
    "bear",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "car",
    "cat",
    "chair",
    "clock",
    "dog",
    "elephant",
    "keyboard",
    "knife",
    "oven",
    "truck",
)
"""The 16 classes of Geirhos et al. 2019, in the order of their labels."""

# `stylize-datasets` names its results <original>-stylized-<style>; Stylized-ImageNet keeps the original's name.
_STYLE_MARK = "-stylized-"
# Result logs of the authors put a trial number and more in front, ending in "_".
_CUE_NAME = re.compile(r"(?:.*_)?(?P<shape>[A-Za-z]+)\d+-(?P<texture>[A-Za-z]+)\d+")


def paired_folders(
    original: str | os.PathLike[str],
    stylized: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    resize: int | None = None,
    stylized_resize: int | None = None,
    channels: Literal[1, 3] = 3,
    interpolation: Interpolation = "bilinear",
    limit: int | None = None,
    class_names: NamesLike | None = None,
    threads: int = 4,
) -> tuple[ImageFiles, ImageFiles]:
    """Open an image folder and its stylised twin, image for image in the same order.

    Both are laid out ``root/<class>/<image>``. A stylised file has the name of its original but for the ending
    (Stylized-ImageNet: ``n01440764/ILSVRC2012_val_00000293.JPEG`` becomes ``.png``), or that name followed by
    ``-stylized-`` and the name of the style (bethgelab's stylize-datasets).

    Stylized-ImageNet is stored as the 224 x 224 centre of images whose shorter side was 256. So that both folders
    show the same part of a picture, pass ``size=224, resize=256``.

    Args:
        original: folder of the originals.
        stylized: folder of the stylised images.
        size: of both, see :class:`EvalTransform`.
        resize: shorter side of the originals before the centre is cut out.
        stylized_resize: the same for the stylised images; None for images that were cut already.
        channels: 3, or 1 for grey.
        interpolation: "bilinear" or "bicubic".
        limit: this many pairs, spread evenly over the whole set.
        class_names: see :class:`ImageFolder`.
        threads: how many files are decoded at a time.

    Returns:
        Originals and stylised images, of equal length, labels and order.

    Raises:
        DataError: a file without its twin (the first few are named), two candidates for one, or what
            :class:`ImageFolder` raises.

    Source: Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture", and their released code.
    """
    left, right = Path(original), Path(stylized)
    classes, originals = labelled_files(left, class_names=class_names)
    _, candidates = labelled_files(right, class_names=classes)
    twins = _by_stem(right, candidates, stems={_stem(file.path) for file in originals})
    by_stem = _by_stem(left, originals)
    lonely = [file.path for stem, file in by_stem.items() if stem not in twins]
    strangers = [file.path for stem, file in twins.items() if stem not in by_stem]
    for paths, where, other in ((lonely, left, right), (strangers, right, left)):
        if paths:
            raise DataError(
                f"{len(paths)} images of {where} have no counterpart in {other}.",
                paths[:5],
                "the same class folder and file name on both sides, but for the ending or '-stylized-<style>'",
            )
    chosen = [originals[index] for index in evenly_spaced(len(originals), limit)]
    plain = ImageFiles(
        left,
        chosen,
        classes,
        transform=EvalTransform(size, resize, channels, interpolation),
        name=left.resolve().name,
        threads=threads,
    )
    styled = ImageFiles(
        right,
        [twins[_stem(file.path)] for file in chosen],
        classes,
        transform=EvalTransform(size, stylized_resize, channels, interpolation),
        name=right.resolve().name,
        threads=threads,
    )
    return plain, styled


class CueConflict(ImageFiles):
    """Images whose shape is of one class and whose texture is of another.

    The layout is that of texture-vs-shape and model-vs-human: ``root/<shape class>/<shape><n>-<texture><m>.png``, e.g.
    ``airplane/airplane1-bicycle2.png``. Images whose shape and texture are of one class are left out, as the authors
    do when they compute the shape bias. Labels are those of the shape.

    Args:
        root: the folder that holds the shape classes; not every class needs a folder.
        size: side of the images, or (H, W), in pixels. The authors' images are 224 x 224.
        resize: the shorter side, in pixels, before the centre is cut out, as in :class:`ImageFolder`.
        channels: 3, or 1 for grey.
        interpolation: "bilinear" or "bicubic".
        name: as it appears in result records; the folder's name by default.
        limit: this many images, spread evenly over the whole set.
        class_names: the classes in the order of their labels.
        threads: see :class:`ImageFolder`.

    Attributes:
        texture_labels: int64 (N,), the class of each image's texture.
        skipped: number of images left out because shape and texture are of one class.

    Raises:
        DataError: a file that is not named so, or lies in another class's folder; nothing but images without
            conflict; or what :class:`ImageFolder` raises.

    Source: Geirhos et al. 2019; 1,280 images, of which 1,200 have a conflict.
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
        class_names: NamesLike = CUE_CLASSES,
        threads: int = 4,
    ) -> None:
        transform = EvalTransform(size, resize, channels, interpolation)
        folder = Path(root)
        classes = read_class_names(class_names)
        number = {name: label for label, name in enumerate(classes)}
        paths = [f"{shape}/{path}" for shape in class_folders(folder) for path in images_under(folder / shape)]
        cues = [_cues(folder, path, number) for path in paths]
        conflicts = [index for index, (shape, texture) in enumerate(cues) if shape != texture]
        if not conflicts:
            raise DataError(
                f"{folder} holds no image whose shape and texture are of two classes.",
                f"{len(paths)} images",
                f"{folder}/airplane/airplane1-bicycle2.png and the like",
            )
        chosen = [conflicts[index] for index in evenly_spaced(len(conflicts), limit)]
        super().__init__(
            folder,
            [LabelledFile(paths[index], cues[index][0]) for index in chosen],
            classes,
            transform=transform,
            name=name or folder.resolve().name,
            threads=threads,
        )
        self.texture_labels = torch.tensor([cues[index][1] for index in chosen])
        self.skipped = len(paths) - len(conflicts)


def _cues(root: Path, path: str, number: Mapping[str, int]) -> tuple[int, int]:
    """Shape and texture of a cue-conflict file."""
    match = _CUE_NAME.fullmatch(PurePosixPath(path).stem)
    shape, texture = match.group("shape", "texture") if match else ("", "")
    if shape not in number or texture not in number or shape != path.split("/")[0]:
        raise DataError(
            f"The name of {root / path} does not say its shape and texture.",
            path,
            f"<shape>/<shape><number>-<texture><number>.png with the classes {', '.join(number)}",
        )
    return number[shape], number[texture]


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _by_stem(root: Path, files: Sequence[LabelledFile], *, stems: set[str] | None = None) -> dict[str, LabelledFile]:
    """The files by class folder and name without ending; with ``stems``, by that of the original."""
    by_stem: dict[str, LabelledFile] = {}
    for file in files:
        stem = _stem(file.path)
        if stems is not None and stem not in stems:
            stem = stem.partition(_STYLE_MARK)[0]
        if stem in by_stem:
            raise DataError(
                f"Two images of {root} stand for one picture.",
                [by_stem[stem].path, file.path],
                "one image a picture and folder",
                "keep one of them",
            )
        by_stem[stem] = file
    return by_stem
