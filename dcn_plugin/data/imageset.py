"""A set of labelled images held in memory, and its split into train, validation and test."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dcn_plugin.checkpoint.class_names import check_class_names
from dcn_plugin.data.labels import class_numbers
from dcn_plugin.errors import ClassesError, DataError, ImageRangeError, LabelError, SpecError
from dcn_plugin.support.arguments import check_count

__all__ = ["ImageSet", "Splits"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and labels in memory; nothing about them changes afterwards.

    Args:
        images: float32 (N, C, H, W) in [0, 1], N >= 1.
        labels: integers (N,) or (N, 1) in [0, num_classes), kept as int64 (N,).
        num_classes: number of classes, whether or not each has an image.
        name: as it appears in result records, e.g. "digits16/test".
        class_names: what they are called, in the order of their labels; None where that is not known. Evaluators
            compare them with those of a network that knows its own.

    Raises:
        ImageRangeError: images of another type or shape, or outside [0, 1].
        LabelError: labels of another type or length, or out of range.
        DataError: no image at all.
        SpecError: not a name for each class, or two alike.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    name: str
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        integral = not labels.is_floating_point() and not labels.is_complex()
        if integral and (labels.dtype != torch.int64 or labels.ndim == 2):
            labels = class_numbers(labels, source=repr(self.name)).to(labels.device)
            object.__setattr__(self, "labels", labels)
        if self.class_names is not None:
            object.__setattr__(self, "class_names", check_class_names(self.class_names, count=self.num_classes))
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
        return replace(self, images=self.images[indices], labels=self.labels[indices], name=name or self.name)

    def numbered(self, class_names: Sequence[str]) -> ImageSet:
        """The same images, their classes numbered by name as a network numbers them.

        Args:
            class_names: of the network, in the order of its logits; it may know more classes than there are here.

        Raises:
            ClassesError: the names of the classes here are not known, or an image is of a class that is not among
                ``class_names``.
        """
        names = check_class_names(class_names)
        number = {name: label for label, name in enumerate(names)}
        present = self.labels.unique().tolist()
        strange = [label if self.class_names is None else self.class_names[label] for label in present]
        strange = [name for name in strange if name not in number]
        if strange or self.class_names is None:
            raise ClassesError(
                f"The images of {self.name!r} are of classes that are not among the names given.",
                strange[:5],
                ", ".join(names[:5]) + (" ..." if len(names) > 5 else ""),
                "say what the classes are called here: ImageSet(..., class_names=)",
            )
        table = torch.tensor([number.get(name, -1) for name in self.class_names], device=self.labels.device)
        return replace(self, labels=table[self.labels], num_classes=len(names), class_names=names)

    def in_channels(self, channels: int) -> ImageSet:
        """The same images in grey (1) or in three equal channels (3); those of that many channels are left alone.

        Grey is the luma of ITU-R 601, as in Pillow's "L" and torchvision's ``rgb_to_grayscale``.

        Raises:
            SpecError: another number than 1 and 3, of the images or asked for.
        """
        now = self.shape[0]
        if channels not in (1, 3) or now not in (1, 3):
            raise SpecError(
                "Only images of 1 and 3 channels turn into each other.", (now, channels), "1 (grey), 3 (RGB)"
            )
        if now == channels:
            return self
        if channels == 3:
            return replace(self, images=self.images.expand(-1, 3, -1, -1).contiguous())
        luma = torch.tensor([0.299, 0.587, 0.114], device=self.images.device).view(1, 3, 1, 1)
        return replace(self, images=(self.images * luma).sum(dim=1, keepdim=True).clamp(0, 1))

    def take(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (int64 (B,)) in that order: float32 (B, C, H, W)."""
        return self.images[indices]

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the set once, in order.

        Args:
            batch_size: images a batch; the last one may be smaller.

        Yields:
            images (B, C, H, W) and labels (B,).
        """
        batch_size = check_count(batch_size, "batch size")
        yield from zip(self.images.split(batch_size), self.labels.split(batch_size), strict=True)


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
