"""Image sets and models that tell what was asked of them, and a small set that two models know."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dcn_plugin.data import ImageSet
from tests.toys import images as some_images
from tests.toys import linear_model


class WatchedImages:
    """An image set that is read piece by piece, and remembers the largest piece and the number of images."""

    def __init__(self, inner: ImageSet) -> None:
        self.inner, self.largest, self.read = inner, 0, 0
        self.name, self.num_classes, self.shape = inner.name, inner.num_classes, inner.shape
        self.content_hash, self.labels = inner.content_hash, inner.labels

    def __len__(self) -> int:
        return len(self.inner)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.inner.batches(batch_size):
            self.largest = max(self.largest, len(images))
            self.read += len(images)
            yield images, labels

    def take(self, indices: Tensor) -> Tensor:
        self.largest = max(self.largest, len(indices))
        self.read += len(indices)
        return self.inner.take(indices)


def count_calls(model: nn.Module) -> list[int]:
    """A list that gets the batch size of every forward pass of the model."""
    calls: list[int] = []
    model.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return calls


def says(model: nn.Module, image: Tensor) -> int:
    """The class of one image (C, H, W), asked alone."""
    with torch.no_grad():
        return int(model(image[None]).argmax())


def two_models() -> dict[str, nn.Module]:
    """Models of three classes that mostly agree."""
    a, b = linear_model(64, seed=0), linear_model(64, seed=1)
    with torch.no_grad():
        for mine, other in zip(b.parameters(), a.parameters(), strict=True):
            mine.lerp_(other, 0.6)
    return {"a": a, "b": b}


def known_set(count: int = 60) -> ImageSet:
    """Images (1, 8, 8) sorted by class, as folders are; of every ten, nine are labelled as "a" says."""
    raw = some_images(count, shape=(1, 8, 8))
    labels = torch.tensor([says(two_models()["a"], image) for image in raw])
    labels[::10] = (labels[::10] + 1) % 3
    order = labels.argsort(stable=True)
    return ImageSet(raw[order], labels[order], 3, "toy")
