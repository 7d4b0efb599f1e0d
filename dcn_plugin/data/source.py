"""What a protocol needs of labelled images, whether they lie in memory or on disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

__all__ = ["IndexedImages", "LabelledImages"]


class LabelledImages(Protocol):
    """A finite sequence of images of one size with their classes, always in the same order.

    :class:`~dcn_plugin.data.ImageSet` holds it in memory, :class:`~dcn_plugin.data.ImageFolder` decodes it from
    files as it is read. Whoever reads batches needs memory for a batch or two.
    """

    @property
    def name(self) -> str:
        """As it appears in result records, e.g. "digits16/test"."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each has an image."""
        ...

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the classes are called, in the order of their labels; None, or left out, where that is not known."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        ...

    @property
    def content_hash(self) -> str:
        """SHA-256 in hex of all that the batches depend on: which data a record was made with."""
        ...

    def __len__(self) -> int: ...

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the images once, in their order.

        Yields:
            images float32 (B, C, H, W) in [0, 1] and labels int64 (B,) in [0, num_classes); B = ``batch_size``
            but for the last batch, which may be smaller.

        Raises:
            SpecError: ``batch_size`` is below 1.
        """
        ...


class IndexedImages(LabelledImages, Protocol):
    """Labelled images of which any can be had by its index; every source of this package is one."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,), known without reading an image."""
        ...

    def take(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (int64 (B,), each in [0, N)) in that order: float32 (B, C, H, W) in [0, 1]."""
        ...
