"""Labelled image files on disk, decoded as they are asked for."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dcn_plugin.checkpoint.class_names import check_class_names
from dcn_plugin.data.decode import EvalTransform, decode, image_size
from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.support.arguments import check_count

__all__ = ["EXTENSIONS", "ImageFiles", "LabelledFile", "evenly_spaced", "images_under"]

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class LabelledFile(NamedTuple):
    """An image file, relative to the root of its set with "/" between the parts, and its class."""

    path: str
    label: int


class ImageFiles:
    """Image files with their classes; memory for two batches whatever the size of the set.

    Args:
        root: the folder that ``files`` are relative to.
        files: the images in their order, at least one.
        class_names: the classes; a label is an index of it.
        transform: from file to image. Without a size all images must have one size; their headers are read here.
        name: as it appears in result records.
        threads: how many files are decoded at a time.

    Raises:
        DataError: images of two sizes, with the first that differs; or a file that cannot be read.
        SpecError: ``threads`` is below 1, or two class names are equal.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        files: Sequence[LabelledFile],
        class_names: Sequence[str],
        *,
        transform: EvalTransform,
        name: str,
        threads: int = 4,
    ) -> None:
        check_count(threads, "number of threads")
        assert files
        self.root = Path(root)
        self.files = tuple(files)
        self.class_names = check_class_names(class_names)
        self.transform = transform
        self.name = name
        self.labels = torch.tensor([file.label for file in files])
        self._threads = threads
        height, width = transform.crop or self._common_size()
        self.shape: tuple[int, int, int] = (transform.channels, height, width)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 in hex over the classes, the transform, and every file's path, label and bytes.

        Computed once; it reads every file.
        """
        about = {
            "classes": self.class_names,
            "crop": self.transform.crop,
            "shorter_side": self.transform.shorter_side,
            "channels": self.transform.channels,
            "interpolation": self.transform.interpolation,
        }
        digest = hashlib.sha256(json.dumps(about).encode())
        with ThreadPoolExecutor(self._threads) as pool:
            for file, content in zip(self.files, pool.map(self._file_hash, self.files), strict=True):
                line = json.dumps([file.path, file.label, content])
                digest.update(f"\n{line}".encode())
        return digest.hexdigest()

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the images once, in their order; the next batch is decoded while one is in use.

        Args:
            batch_size: images a batch; the last one may be smaller.

        Yields:
            images float32 (B, C, H, W) in [0, 1] and labels int64 (B,).

        Raises:
            SpecError: ``batch_size`` is below 1.
            DataError: a file that cannot be read.
        """
        check_count(batch_size, "batch size")
        chunks = torch.arange(len(self)).split(batch_size)
        pool = ThreadPoolExecutor(self._threads)
        try:
            waiting = self._submit(pool, chunks[0])
            for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
                current = waiting
                if following is not None:
                    waiting = self._submit(pool, following)
                yield _stack([future.result() for future in current]), self.labels[chunk]
        finally:
            pool.shutdown(cancel_futures=True)

    def take(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (int64 (B,)) in that order: float32 (B, C, H, W) in [0, 1].

        Raises:
            DataError: a file that cannot be read.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            return _stack([future.result() for future in self._submit(pool, indices)])

    def _submit(self, pool: ThreadPoolExecutor, indices: Tensor) -> list[Future[Tensor]]:
        return [pool.submit(self._read, index) for index in indices.tolist()]

    def _read(self, index: int) -> Tensor:
        path = self.root / self.files[index].path
        image = decode(path, self.transform)
        if tuple(image.shape) != self.shape:  # the file was replaced since its header was read
            raise DataError(f"{path} has changed its size.", tuple(image.shape), f"{self.shape}")
        return image

    def _file_hash(self, file: LabelledFile) -> str:
        try:
            with open(self.root / file.path, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{self.root / file.path} cannot be read.", str(error), "a readable file") from error

    def _common_size(self) -> tuple[int, int]:
        first = image_size(self.root / self.files[0].path)
        for file in self.files:
            size = image_size(self.root / file.path)
            if size != first:
                raise DataError(
                    f"The images of {self.name!r} differ in size: {file.path} from {self.files[0].path}.",
                    {"height and width": size},
                    f"{first}, as the first",
                    "pass size=, e.g. size=224, and every image is resized and its centre cut out",
                )
        return first


def images_under(folder: Path) -> list[str]:
    """Paths of all image files below a folder, relative to it, in torchvision's order.

    Names that begin with a dot are passed over: systems and notebooks leave such files behind.
    """
    paths = []
    # Sorted, for the order in which a file system lists names is its own affair.
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        inner = Path(parent).relative_to(folder)
        if not any(part.startswith(".") for part in inner.parts):
            paths += [
                (inner / name).as_posix()
                for name in sorted(names)
                if name.lower().endswith(EXTENSIONS) and not name.startswith(".")
            ]
    return paths


def evenly_spaced(total: int, limit: int | None) -> list[int]:
    """Indices of ``limit`` items spread evenly over ``total``; all of them without a limit, or with a larger one.

    A folder is sorted by class: its first images would all be of the first class.

    Raises:
        SpecError: ``limit`` is below 1.
    """
    if limit is None:
        return list(range(total))
    if limit < 1:
        raise SpecError("The limit leaves no image.", limit, "an int >= 1, or None for all")
    count = min(limit, total)
    return [place * total // count for place in range(count)]


def _stack(images: list[Tensor]) -> Tensor:
    return torch.stack(images).float().div_(255)
