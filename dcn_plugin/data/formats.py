"""Corrupted CIFAR (CIFAR-10-C, CIFAR-100-C) and STL-10, as their authors publish them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from dcn_plugin.data.array_files import CIFAR10_NAMES
from dcn_plugin.data.imageset import ImageSet
from dcn_plugin.data.labels import class_numbers
from dcn_plugin.errors import DataError, SpecError

__all__ = ["SEVERITIES", "load_cifar_c", "load_stl10"]

SEVERITIES = 5
_STL_SHAPE = (3, 96, 96)
_STL_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def load_cifar_c(
    root: str | os.PathLike[str],
    corruption: str,
    *,
    severity: int | None = None,
    num_classes: Literal[10, 100] = 10,
    name: str | None = None,
) -> ImageSet:
    """Read one corruption of CIFAR-10-C or CIFAR-100-C; of other severities nothing is held in memory.

    Args:
        root: the folder of ``labels.npy`` and ``<corruption>.npy``: uint8 (5 n, H, W, 3), the same n images in five
            severities one after the other (n = 10,000).
        corruption: e.g. "fog", "gaussian_noise".
        severity: 1 .. 5; None: all five.
        num_classes: 10, or 100 for CIFAR-100-C.
        name: as it appears in result records; by default e.g. "cifar10c/fog/3".

    Raises:
        DataError: a file is missing or not laid out so; the message lists the corruptions that are there.
        SpecError: a severity out of range, or another number of classes.

    Source: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions".
    """
    if severity is not None and (isinstance(severity, bool) or severity not in range(1, SEVERITIES + 1)):
        raise SpecError("Unknown severity.", severity, f"1 .. {SEVERITIES}, or None for all")
    if num_classes not in (10, 100):
        raise SpecError("Unknown number of classes.", num_classes, "10 (CIFAR-10-C), 100 (CIFAR-100-C)")
    folder = Path(root)
    there = sorted(path.stem for path in folder.glob("*.npy") if path.stem != "labels")
    if not corruption and there:
        raise SpecError("A corruption has to be named.", corruption, ", ".join(there), f"pass corruption={there[0]}")
    if corruption not in there or not (folder / "labels.npy").is_file():
        raise DataError(
            f"The corruption {corruption!r} is not in {folder}." if corruption else f"{folder} holds no CIFAR-C.",
            there or "no corruption",
            f"{folder}/labels.npy and {folder}/{corruption or '<corruption>'}.npy",
            f"pass one of {', '.join(there)}" if there else "unpack CIFAR-10-C there",
        )
    images, labels = _npy(folder / f"{corruption}.npy"), _npy(folder / "labels.npy")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) % SEVERITIES:
        raise DataError(
            f"{folder / corruption}.npy is not laid out as CIFAR-C.",
            (str(images.dtype), images.shape),
            f"uint8 (5 n, H, W, 3), the {SEVERITIES} severities one after the other",
        )
    if len(labels) != len(images):
        raise DataError(f"{folder} has not a label an image.", (len(images), len(labels)), "as many labels as images")
    count = len(images) // SEVERITIES
    part = slice(None) if severity is None else slice((severity - 1) * count, severity * count)
    chosen = np.array(images[part]).transpose(0, 3, 1, 2)
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(chosen)).float().div_(255),
        class_numbers(np.array(labels[part]), source=str(folder / "labels.npy")),
        num_classes,
        name or "/".join([f"cifar{num_classes}c", corruption, *([] if severity is None else [str(severity)])]),
        CIFAR10_NAMES if num_classes == 10 else None,
    )


def load_stl10(root: str | os.PathLike[str], *, train: bool = False) -> ImageSet:
    """Read STL-10's binary files: 96 x 96 pixels, ten classes.

    Args:
        root: the folder of ``train_X.bin``, ``train_y.bin``, ``test_X.bin`` and ``test_y.bin``, or the one that holds
            it as ``stl10_binary``.
        train: the training images instead of the test images.

    Returns:
        Labels 0 .. 9: the files count from 1.

    Raises:
        DataError: the files are missing, or their lengths do not fit.
        LabelError: labels out of range.

    Source: Coates, Lee, Ng 2011, "An analysis of single-layer networks in unsupervised feature learning".
    """
    split = "train" if train else "test"
    folder = next((f for f in (Path(root) / "stl10_binary", Path(root)) if (f / f"{split}_X.bin").is_file()), None)
    if folder is None or not (folder / f"{split}_y.bin").is_file():
        raise DataError(
            "STL-10 is not in this folder.",
            os.fspath(root),
            f"{split}_X.bin and {split}_y.bin in it or in stl10_binary",
        )
    pixels, classes = (np.fromfile(folder / f"{split}_{what}.bin", np.uint8) for what in "Xy")
    if not len(classes) or len(pixels) != len(classes) * int(np.prod(_STL_SHAPE)):
        raise DataError(
            f"The files of {folder} are not whole.",
            (len(pixels), len(classes)),
            f"{int(np.prod(_STL_SHAPE))} bytes in {split}_X.bin for each byte in {split}_y.bin",
            "download them again",
        )
    images = torch.from_numpy(pixels.reshape(-1, *_STL_SHAPE)).transpose(2, 3)  # column by column
    return ImageSet(
        images.float().div_(255).contiguous(),
        class_numbers(classes, source=str(folder)) - 1,
        len(_STL_NAMES),
        f"stl10/{split}",
        _STL_NAMES,
    )


def _npy(path: Path) -> npt.NDArray[np.generic]:
    try:
        array: npt.NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read.", f"{type(error).__name__}: {error}", "an .npy file") from error
    return array
