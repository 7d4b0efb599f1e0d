"""A set of labelled images held in memory, and its split into train, validation and test."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from dcn_plugin.errors import DataError, ImageRangeError, LabelError, SpecError

__all__ = ["ImageSet", "Splits"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels in memory; nothing about them changes afterwards.

    Args:
        images: float32 (N, C, H, W) in [0, 1], N >= 1.
        labels: int64 (N,) in [0, num_classes).
        num_classes: number of classes, whether or not each has an image.
        name: as it appears in result records, e.g. "digits16/test".

    Raises:
        ImageRangeError: images of another type or shape, or outside [0, 1].
        LabelError: labels of another type or length, or out of range.
        DataError: no image at all.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    name: str

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.float32 or images.ndim != 4:
            raise ImageRangeError(
                f"The images of {self.name!r} have the wrong type or shape.",
                (str(images.dtype), tuple(images.shape)),
                "float32 (N, C, H, W)",
                "convert them, e.g. images.float() / 255",
            )
        if not len(images):
            raise DataError(f"The image set {self.name!r} is empty.", 0, "at least one image")
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 1):  # written so that NaN fails too
            raise ImageRangeError(
                f"The images of {self.name!r} leave the range of pixels.",
                (low, high),
                "[0, 1]",
                "divide 8-bit images by 255; put normalisation inside the model with dcn_plugin.Normalized",
            )
        if labels.dtype != torch.int64 or labels.shape != (len(images),):
            raise LabelError(
                f"The labels of {self.name!r} have the wrong type or shape.",
                (str(labels.dtype), tuple(labels.shape)),
                f"int64 ({len(images)},)",
            )
        if int(labels.min()) < 0 or int(labels.max()) >= self.num_classes:
            raise LabelError(
                f"The labels of {self.name!r} are out of range.",
                (int(labels.min()), int(labels.max())),
                f"0 .. {self.num_classes - 1}",
                "number the classes from 0",
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 over shape, pixels and labels, in hex: which data a record was made with."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.num_classes)).encode())
        digest.update(self.images.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Tensor, *, name: str | None = None) -> ImageSet:
        """The images at ``indices`` (int64 or bool (N,)), as a copy, in that order."""
        return ImageSet(self.images[indices], self.labels[indices], self.num_classes, name or self.name)

    def take(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (int64 (B,)) in that order: float32 (B, C, H, W)."""
        return self.images[indices]

    def batches(
        self, batch_size: int, *, generator: Generator | None = None, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the set once.

        Args:
            batch_size: images a batch; the last one may be smaller.
            generator: a CPU generator that shuffles; None keeps the order.
            drop_last: leave out a last batch that is smaller (unless it is the only one).

        Yields:
            images (B, C, H, W) and labels (B,).
        """
        if batch_size < 1:
            raise SpecError("The batch size is not usable.", batch_size, "an int >= 1")
        total = len(self)
        if drop_last and total >= batch_size:
            total -= total % batch_size
        order = None if generator is None else torch.randperm(len(self), generator=generator)
        for start in range(0, total, batch_size):
            stop = min(start + batch_size, total)
            chosen = slice(start, stop) if order is None else order[start:stop]
            yield self.images[chosen], self.labels[chosen]


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set cut into disjoint parts.

    Args:
        train: to fit weights on.
        val: to choose settings on.
        test: to report on, and nothing else.
    """

    train: ImageSet
    val: ImageSet
    test: ImageSet
