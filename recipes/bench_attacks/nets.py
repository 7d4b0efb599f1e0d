"""The networks of the benchmark, and the images they are attacked on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from dcn_plugin.attacks import AttackRun, DecisionAttack
from dcn_plugin.attacks.base import Rows
from dcn_plugin.attacks.decision import Asker
from dcn_plugin.data import ImageSet, load_digits
from dcn_plugin.experiments.datasets import open_data
from dcn_plugin.experiments.scales import scale_for
from dcn_plugin.models.resnet import cifar_resnet
from dcn_plugin.support.onednn import FEW_CHANNELS
from dcn_plugin.training import TrainConfig, isolated_rng, train

__all__ = ["SHAPES", "Net", "build"]

#: Network -> channels and side of its images, which are enlarged digits but for "natural": CIFAR-10.
SHAPES = {"tiny": (1, 16), "cifar": (3, 32), "natural": (3, 32)}


@dataclass(frozen=True)
class Net:
    """A trained network and the images it is attacked on, all of which it gets right."""

    model: nn.Module
    data: ImageSet
    starts: Tensor
    accuracy: float
    width: int
    bottom: float | None = None
    images: str = "digits, enlarged"

    def about(self) -> dict[str, Any]:
        """What the record says of it."""
        c, h, w = self.data.images.shape[1:]
        name = "" if self.bottom is None else f" {self.bottom}-Bottom"
        return {
            "network": f"CIFAR ResNet-18{name}, width {self.width}, input {c}x{h}x{w}"
            + ("" if self.images == Net.images else f", {self.images}"),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "clean_accuracy": self.accuracy,
        }

    def first(self, count: int) -> Net:
        """The same network and the first so many of its images."""
        images, labels = self.data.images[:count], self.data.labels[:count]
        data = ImageSet(images, labels, self.data.num_classes, self.data.name)
        return replace(self, data=data, starts=self.starts[:count])


class _OnlyStart(DecisionAttack):
    """Finds an adversarial image by noise and bisection, and stays there."""

    def __init__(self, *, seed: int) -> None:
        super().__init__(
            max_queries=1100,
            steps=None,
            scouts=1,
            restarts=0,
            start_draws=1000,
            start_grid=1000,
            start_search="bisection",
            seed=seed,
        )

    def approach(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        return points


def build(
    kind: str,
    *,
    width: int,
    images: int,
    epochs: int,
    seed: int,
    bottom: float | None = None,
    train_images: int | None = None,
    root: Path | None = None,
) -> Net:
    """Train a network; take the first test images that it has right and that have a start.

    Args:
        kind: of :data:`SHAPES`.
        width: of the network.
        images: at most so many.
        epochs: of training.
        seed: of training and of the starts.
        bottom: share of neurons that a defective network keeps in its bottom layers; None: a standard network.
        train_images: of "natural", the first so many; None: all.
        root: of CIFAR-10, for "natural".
    """
    channels, size = SHAPES[kind]
    config, title = TrainConfig(epochs=epochs, seed=seed), Net.images
    if kind == "natural":
        data = open_data("cifar10", root)
        title = data.title
        train_set, test_set = data.train(train_images), data.test(20 * images)
        assert isinstance(test_set, ImageSet)  # CIFAR-10 is read into memory
        config = replace(scale_for("small", "cifar10").training.lasting(epochs), seed=seed, select="last")
        if width < FEW_CHANNELS:
            config = replace(config, channels_last=False)
    else:
        splits = load_digits(size=size, seed=seed)
        train_set, test_set = (
            ImageSet(part.images.repeat(1, channels, 1, 1), part.labels, part.num_classes, part.name)
            for part in (splits.train, splits.test)
        )
    with isolated_rng(seed):
        if bottom is None:
            model: nn.Module = cifar_resnet(in_chans=channels, width=width)
        else:
            model = timm.create_model(
                "defective_resnet18_cifar", p=bottom, num_classes=10, in_chans=channels, img_size=size, width=width
            )
    train(model, train_set, config)
    model.eval().requires_grad_(False)
    begun = _OnlyStart(seed=seed)(model, test_set.images, test_set.labels)
    chosen = begun.fooled.nonzero().flatten()[:images]
    data = ImageSet(test_set.images[chosen], test_set.labels[chosen], test_set.num_classes, test_set.name)
    return Net(model, data, begun.images[chosen], float(begun.correct.double().mean()), width, bottom, title)
