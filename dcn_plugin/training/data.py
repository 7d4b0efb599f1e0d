"""Where the batches of training come from: images held whole on the device, or files decoded as they are needed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from dcn_plugin.checkpoint.train_config import TrainConfig
from dcn_plugin.data import EvalTransform, ImageFiles, LabelledImages
from dcn_plugin.data.augment import Moves, draw_moves
from dcn_plugin.data.decode import decode
from dcn_plugin.errors import SpecError
from dcn_plugin.support.processes import Team
from dcn_plugin.support.randomness import isolated_rng
from dcn_plugin.training.color import check_colored, draw_colors, shift_colors

__all__ = ["Batch", "HeldImages", "Shard", "StreamedImages", "TrainData", "as_train_data", "files_hash", "plan_epoch"]

HOLD_AT_MOST = 8 * 2**30  # bytes


class Batch(NamedTuple):
    """What one step trains on.

    Attributes:
        images: float32 (B, C, H, W) in [0, 1], augmented, on the model's device.
        labels: int64 (B,), on the model's device.
        places: int64 (B,), the place of each image in its data set, on the CPU.
        moves: how the images were moved, where that is all that was done to them and can be repeated on others; None
            for random resized crops and shifted colours.
        weights: float (B,) of mean 1, each image's weight in the loss, on the model's device; None: all alike.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    moves: Moves | None = None
    weights: Tensor | None = None


Shard = Team
"""The processes that train together, and with ``rows`` which part of every batch is this one's."""


class TrainData(Protocol):
    """Images to train on. Write one to train on images of another kind; :class:`HeldImages` shows how.

    Data that know what their classes are called have an attribute ``class_names``, as
    :class:`~dcn_plugin.data.LabelledImages` has it.
    """

    @property
    def name(self) -> str:
        """As it appears in the record of the run."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each has an image."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image as the model gets it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Text that differs where the batches would: a run goes on only with the data it was started with."""
        ...

    def __len__(self) -> int: ...

    def epoch(self, batch_size: int, *, generator: Generator, device: torch.device, shard: Shard) -> Iterator[Batch]:
        """The batches of one epoch, :func:`plan_epoch` many.

        Args:
            batch_size: images a batch over all processes.
            generator: a CPU generator, the only source of randomness. Its state at the end of an epoch is kept in
                the checkpoint; every process draws the same from it.
            device: where the batches go.
            shard: which rows of each batch to give.
        """
        ...


def plan_epoch(count: int, batch_size: int, *, generator: Generator) -> list[Tensor]:
    """Shuffle ``count`` places and cut them into batches; a last one that is smaller is left out unless it is the only.

    Returns:
        int64 (batch_size,) each; max(1, count // batch_size) of them.
    """
    total = count - count % batch_size if count >= batch_size else count
    return list(torch.randperm(count, generator=generator)[:total].split(batch_size))


class HeldImages:
    """Images held whole on the device and augmented there, a batch at a time.

    Args:
        data: the images. They are held as uint8 where they are exactly 8-bit images, and as float32 otherwise.
        shift: images are shifted by up to this many pixels at random.
        flip: half of the images are mirrored left to right.
        pca_color: standard deviation of the shift of colours, as in :class:`TrainConfig`.

    Raises:
        SpecError: they would take more than 8 GiB, or have no colours to shift.
    """

    def __init__(self, data: LabelledImages, *, shift: int = 0, flip: bool = False, pca_color: float = 0.0) -> None:
        check_colored(data.shape, pca_color)
        self.name, self.num_classes, self.shape = data.name, data.num_classes, data.shape
        self.class_names: tuple[str, ...] | None = getattr(data, "class_names", None)
        self.shift, self.flip, self.pca_color = shift, flip, pca_color
        self._pixels, self._labels = _held(data)

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over pixels and labels."""
        digest = hashlib.sha256(f"{self._pixels.dtype} {tuple(self._pixels.shape)} {self.num_classes}".encode())
        for tensor in (self._pixels, self._labels):
            digest.update(tensor.cpu().numpy().data)
        return digest.hexdigest()

    def epoch(self, batch_size: int, *, generator: Generator, device: torch.device, shard: Shard) -> Iterator[Batch]:
        """See :class:`TrainData`."""
        self._pixels, self._labels = self._pixels.to(device), self._labels.to(device)
        for places in plan_epoch(len(self), batch_size, generator=generator):
            moves = draw_moves(len(places), pixels=self.shift, flip=self.flip, generator=generator)
            colors = draw_colors(len(places), std=self.pca_color, generator=generator) if self.pca_color else None
            shard_places = places[shard.rows]
            chosen = shard_places.to(device)
            moves = moves[shard.rows]
            pixels = moves(self._pixels[chosen])
            images = pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels
            if colors is not None:
                images = shift_colors(images, colors[shard.rows])
            yield Batch(images, self._labels[chosen], shard_places, moves if colors is None else None)


class StreamedImages:
    """Random resized crops of image files, decoded by worker processes while the model computes.

    Args:
        files: the images; the crop takes the place of their own transform, its size is theirs.
        min_scale: least share of an image's area that a crop covers, in (0, 1]; its aspect ratio is in [3/4, 4/3].
        flip: mirror half of the images left to right.
        pca_color: see :class:`TrainConfig`.
        workers: processes that decode; 0 decodes in this one.

    Raises:
        SpecError: the images have no colours to shift.

    Source: torchvision's transforms v2, RandomResizedCrop; Szegedy et al. 2015 for its ranges.
    """

    def __init__(
        self, files: ImageFiles, *, min_scale: float, flip: bool = False, pca_color: float = 0.0, workers: int = 4
    ) -> None:
        check_colored(files.shape, pca_color)
        self.name, self.num_classes, self.shape = files.name, files.num_classes, files.shape
        self.class_names: tuple[str, ...] | None = files.class_names
        self._files, self.pca_color = files, pca_color
        self._plan: list[list[tuple[int, int]]] = []
        self._workers = min(workers, os.cpu_count() or 1)
        self._crops = _Crops(files, min_scale, flip)
        self._loader: DataLoader[Tensor] | None = None

    def __len__(self) -> int:
        return len(self._files)

    @property
    def fingerprint(self) -> str:
        """See :func:`files_hash`."""
        return files_hash(self._files)

    def epoch(self, batch_size: int, *, generator: Generator, device: torch.device, shard: Shard) -> Iterator[Batch]:
        """See :class:`TrainData`."""
        plan = [places[shard.rows] for places in plan_epoch(len(self), batch_size, generator=generator)]
        # One seed an image and epoch: a crop depends neither on the worker that makes it nor on the process.
        seeds = torch.randint(2**62, (len(self),), generator=generator)
        colors = draw_colors(len(self), std=self.pca_color, generator=generator) if self.pca_color else None
        # The list is the loader's own, so that its workers live on from epoch to epoch.
        self._plan[:] = [list(zip(places.tolist(), seeds[places].tolist(), strict=True)) for places in plan]
        if self._loader is None:
            self._loader = DataLoader(
                self._crops,
                batch_sampler=self._plan,
                num_workers=self._workers,
                persistent_workers=self._workers > 0,
                pin_memory=device.type == "cuda",
                generator=torch.Generator(),  # without it the loader draws from the global one
            )
        for places, pixels in zip(plan, self._loader, strict=True):
            images = pixels.to(device, non_blocking=True).float().div_(255)
            if colors is not None:
                images = shift_colors(images, colors[places])
            yield Batch(images, self._files.labels[places].to(device), places)


class _Crops(Dataset[Tensor]):
    """(place, seed) -> uint8 (C, H, W)."""

    def __init__(self, files: ImageFiles, min_scale: float, flip: bool) -> None:
        from torchvision.transforms import v2

        self._files = files
        self._whole = EvalTransform(channels=files.transform.channels)
        crop = v2.RandomResizedCrop(files.shape[1:], scale=(min_scale, 1.0), antialias=True)
        self._transform: Any = v2.Compose([crop, v2.RandomHorizontalFlip()]) if flip else crop

    def __getitem__(self, item: tuple[int, int]) -> Tensor:
        place, seed = item
        image = decode(self._files.root / self._files.files[place].path, self._whole)
        with isolated_rng(seed):  # the transforms draw from the global generator
            cut: Tensor = self._transform(image)
        return cut


def files_hash(files: ImageFiles) -> str:
    """SHA-256 in hex over the names, sizes and labels of image files; their content is not read."""
    digest = hashlib.sha256(json.dumps([files.class_names, files.shape]).encode())
    for path, label in files.files:
        digest.update(json.dumps([path, label, (files.root / path).stat().st_size]).encode())
    return digest.hexdigest()


def as_train_data(data: LabelledImages | TrainData, config: TrainConfig, *, workers: int = 4) -> TrainData:
    """Open images for training, as the configuration says: held, or streamed as random resized crops.

    Args:
        data: what is a :class:`TrainData` already is taken as it is.
        config: its ``shift``, ``flip``, ``min_scale`` and ``pca_color``.
        workers: processes that decode files, where they are streamed.

    Raises:
        SpecError: random resized crops of images that are no files; images too many to be held, or without colours to
            shift.
    """
    if hasattr(data, "epoch"):
        return cast(TrainData, data)
    if config.min_scale is None:
        return HeldImages(data, shift=config.shift, flip=config.flip, pca_color=config.pca_color)
    if not isinstance(data, ImageFiles):
        raise SpecError(
            "Random resized crops are made of image files.",
            {"data": type(data).__name__, "min_scale": config.min_scale},
            "an image folder, or min_scale=None",
        )
    return StreamedImages(
        data, min_scale=config.min_scale, flip=config.flip, pca_color=config.pca_color, workers=workers
    )


def _held(data: LabelledImages) -> tuple[Tensor, Tensor]:
    """Pixels, uint8 where that loses nothing, and labels."""
    size = len(data) * data.shape[0] * data.shape[1] * data.shape[2]
    if size > HOLD_AT_MOST:
        raise SpecError(
            f"{data.name} is too large to be held in memory.",
            f"{size / 2**30:.1f} GiB",
            f"{HOLD_AT_MOST / 2**30:.0f} GiB of 8-bit images",
            "set min_scale (0.08 is ImageNet's custom): image folders are then decoded as they are needed",
        )
    pixels = torch.empty((len(data), *data.shape), dtype=torch.uint8)
    labels = torch.empty(len(data), dtype=torch.int64)
    start = 0
    for images, numbers in data.batches(1024):
        rows = slice(start, start + len(images))
        eight_bit = images.mul(255).round_().byte()
        if not torch.equal(eight_bit.float().div_(255), images):
            # Resized digits, for instance: rounding them would train on other images.
            images, labels = (torch.cat(parts) for parts in zip(*data.batches(1024), strict=True))
            return images, labels
        pixels[rows], labels[rows] = eight_bit, numbers
        start += len(images)
    return pixels, labels
