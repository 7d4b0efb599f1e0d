"""The sizes of a recipe: one place for what "smoke", "small", "medium" and "full" mean, whatever the table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import is_count
from dcn_plugin.support.onednn import FEW_CHANNELS
from dcn_plugin.support.suggestions import check_known
from dcn_plugin.training import TrainConfig

__all__ = ["SCALES", "Scale", "ScaleName", "scale_for"]

ScaleName = Literal["smoke", "small", "medium", "full"]
SCALES: tuple[ScaleName, ...] = get_args(ScaleName)

PAPER_WIDTH = 64


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What a recipe costs; every number that is measured stands beside its width and epochs.

    Args:
        name: "smoke", "small", "medium" or "full".
        training: of every network alike, but for its seed.
        data: a data set in place of the recipe's own.
        width: channels of a network's first stage; 64 is the paper's.
        train_images: this many training images, from the first on.
        images: this many test images, from the first on.
        cw_images: of those, for Carlini and Wagner's attack; the paper's 1,056.
        count: images of a decision-based attack, the first that a network has right; the paper's 500.
        boundary_steps: of the boundary attack.
        queries: of a decision-based attack on an image; None: no limit, as in the paper.
        max_steps: gradient attacks of more steps get this many, and a step size in proportion.
        cw_steps: of Adam, in each round.
        members: networks of an ensemble, at most.
        answers: of a target that a source is distilled from, at most: its query budget.
        batch_size: images at a time in attacks and measurements.

    Raises:
        SpecError: a number is below 1.
    """

    name: ScaleName
    training: TrainConfig
    data: str | None = None
    width: int = PAPER_WIDTH
    train_images: int | None = None
    images: int | None = None
    cw_images: int = 1056
    count: int = 500
    boundary_steps: int = 5000
    queries: int | None = None
    max_steps: int | None = None
    cw_steps: int = 1000
    members: int = 5
    answers: int = 20_000
    batch_size: int = 250

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name in _NUMBERS and value is not None and not is_count(value, least=1):
                raise SpecError(f"The {item.name} of a scale is not usable.", value, "an int >= 1")

    @property
    def training_json(self) -> dict[str, Any]:
        """The training without its seed, which belongs to a network."""
        raw: dict[str, Any] = json.loads(self.training.to_json())
        del raw["seed"]
        return raw

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON values."""
        settings = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "training"}
        return settings | {"training": self.training_json}


_NUMBERS = tuple(item.name for item in dataclasses.fields(Scale) if item.name not in ("name", "training", "data"))
_TRAINING = ("epochs", "batch", "lr", "amp")


def _imagenet() -> TrainConfig:
    """Epochs, crops, flip and PCA colour are the authors', the rest, which they do not give, torchvision's."""
    return TrainConfig(
        epochs=100,
        batch_size=256,
        schedule="steps",
        milestones=(30, 60, 90),
        nesterov=False,
        weight_decay=1e-4,
        flip=True,
        min_scale=0.08,
        pca_color=0.1,
    )


def _digits() -> TrainConfig:
    """Not the paper's: it has no digits of 8 x 8 pixels."""
    return TrainConfig(epochs=20, shift=1)


_PAPER = {
    "digits": _digits,
    "cifar10": TrainConfig.paper_cifar,
    "mnist": TrainConfig.paper_mnist,
    "tiny-imagenet": TrainConfig.paper_cifar,  # the authors give none for it
    "imagenet": _imagenet,
}


def scale_for(name: str, data: str, changes: Mapping[str, Any] | None = None) -> Scale:
    """The settings of a scale for a recipe.

    Args:
        name: "smoke": embedded digits and tiny networks; whether it runs, not what it finds. "small": two CPU cores, an
            hour for a handful of networks. "medium": twice as wide, about twice as many epochs and test images: whether
            what is found at scale small shrinks or grows towards the paper's networks. "full": the paper's.
        data: the recipe's data set.
        changes: fields of :class:`Scale`, or ``epochs``, ``batch``, ``lr`` and ``amp`` of its training.

    Raises:
        SpecError: an unknown scale, field or value; the nearest names are in the message.
    """
    check_known("scale", name, SCALES)
    changes = dict(changes or {})
    for key in changes:
        check_known("setting of a scale", key, ("data", *_NUMBERS, *_TRAINING))
    used = changes.get("data")
    training = _training(name, str(used or data), {key: changes.pop(key) for key in _TRAINING if key in changes})
    if name == "smoke":
        settings = {
            "data": "digits",
            "width": 8,
            "train_images": 128,
            "images": 32,
            "cw_images": 8,
            "count": 4,
            "boundary_steps": 20,
            "queries": 100,
            "max_steps": 2,
            "cw_steps": 3,
            "members": 2,
            "answers": 256,
        }
    elif name in ("small", "medium"):
        settings = {
            "width": 16 if name == "small" else 32,
            "images": 1000 if name == "small" else 2000,
            "cw_images": 100,
            "count": 100,
            "boundary_steps": 1000,
            "queries": 5000,
            "cw_steps": 100,
            "answers": 4000,
        }
    else:
        settings = {}
    scale = Scale(name=name, training=training, **{**settings, **changes})  # type: ignore[arg-type]
    if scale.width >= FEW_CHANNELS:
        return scale
    return dataclasses.replace(scale, training=dataclasses.replace(training, channels_last=False))


def _training(scale: str, data: str, changes: Mapping[str, Any]) -> TrainConfig:
    if scale == "full":
        check_known("data set of the full scale", data, _PAPER)
        config = _PAPER[data]()
    elif scale in ("small", "medium"):
        mirrors = data != "mnist"  # a mirrored digit is another one
        # bfloat16 halves the hours where the CPU has it; elsewhere amp computes in float32.
        epochs, shift = 8 if scale == "small" else 15, 4 if mirrors else 2
        config = TrainConfig(
            epochs=epochs, batch_size=128, lr=0.2, shift=shift, flip=mirrors, amp=True, channels_last=True
        )
    else:
        config = TrainConfig(epochs=1, batch_size=32, lr=0.05)
    config = config if "epochs" not in changes else config.lasting(changes["epochs"])
    names = {"batch": "batch_size", "lr": "lr", "amp": "amp"}
    # The last epoch: nothing is chosen on the test set, and no training image is lost to a validation set.
    return dataclasses.replace(
        config, select="last", **{names[key]: value for key, value in changes.items() if key in names}
    )
