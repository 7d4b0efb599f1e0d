"""How a network is trained, in data."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import check_rules
from dcn_plugin.surgery.gradual import GradualOrder, GradualSchedule

__all__ = ["Engine", "NormStatistics", "Schedule", "Select", "TrainConfig", "smoothing_for"]

Schedule = Literal["one-cycle", "steps"]
Select = Literal["val", "test", "last"]
Engine = Literal["dense", "auto", "c"]
NormStatistics = Literal["all", "live"]

# Options that came after runs had been kept. At their default they stand in no text, so that what a run is known by
# (its folder's plan, the name of a recipe's network) is what it was before there was the option. Add new ones here.
_LATER = (
    *("pca_color", "engine", "norm_statistics"),
    *("gradual", "gradual_share", "gradual_order", "gradual_start"),
)


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained: SGD, its schedule, the augmentation and what makes it faster.

    Args:
        epochs: passes over the data, >= 1.
        batch_size: images a step over all processes, >= 2 (batch norm needs two). A last batch that is smaller is
            left out.
        schedule: "one-cycle" rises from lr / 25 to lr and falls to almost 0, along cosines; "steps" multiplies lr by
            ``gamma`` at each of the ``milestones``.
        lr: highest learning rate.
        warmup: of "one-cycle": share of the steps on the rise, in (0, 1).
        milestones: of "steps": epochs from 0, increasing, at whose start lr falls.
        gamma: of "steps": what lr is multiplied by, in (0, 1].
        momentum: of SGD, in [0, 1).
        nesterov: look ahead; needs momentum > 0.
        weight_decay: on every parameter, as in the paper.
        label_smoothing: as in torch's cross-entropy; see :func:`smoothing_for` for the paper's.
        shift: images are shifted by up to this many pixels at random ("crop with padding").
        flip: half of the images are mirrored left to right.
        min_scale: None: the images are held in memory as they are. Otherwise every image is a random resized crop
            of its file with at least this share of its area, decoded anew in every epoch; 0.08 is ImageNet's custom.
        pca_color: colours are shifted along the principal axes of ImageNet's, by factors of this standard deviation;
            0.1 is the custom, 0 shifts nothing. RGB images only.
        ema_decay: average the weights with this decay, in (0, 1), rising to it from 0 in the first steps. The average
            is then what is validated, saved and returned.
        clip_norm: largest L2 norm of the gradient.
        amp: compute in bfloat16 where autocast does, on a device that has instructions for it. On others bfloat16 is
            slower than float32, which is then used. The history says what a network was trained in.
        channels_last: keep images and weights in that memory format; the model stays in it. Refused on a CPU
            for a network with fewer than 16 channels before a 1x1 convolution of stride 2, where oneDNN would write
            outside its memory (oneDNN issue 6035).
        compile: run the training step through ``torch.compile``.
        gradual: None: the masks of a defective network act from the first step on. "linear" and "cosine": its neurons
            die a few at a time, until its masks are what they were when it came. The best epoch is chosen among those
            that end with these masks. See :class:`dcn_plugin.training.GradualDefects`.
        gradual_share: of ``gradual``: share of the run's steps over which they die, in (0, 1].
        gradual_order: of ``gradual``: "together", or "bottom-up", one block after another from the input upwards.
        gradual_start: of ``gradual``: keep probability before the first step, in (0, 1].
        engine: what computes the steps of a defective network: "dense", the network itself; "c", the engine of
            :func:`dcn_plugin.compact_training`, which skips what masks drop; "auto", the engine where it was measured
            to be faster. Weights differ by rounding alone. A run goes on with what it had chosen. While ``gradual``
            changes masks, the network itself computes.
        norm_statistics: what a batch norm behind a mask takes its statistics from: "all" neurons, as in the paper's
            code, or the "live" ones alone, which is another network and needs an engine.
        select: what the best epoch is chosen on: "val", the validation set; "test", the test set, as the authors of
            the paper did, whose accuracy is then too good; "last", no choice.
        seed: of the order, the augmentation and whatever the model itself draws.

    Raises:
        SpecError: a value is out of range, or fits no other.
    """

    epochs: int = 12
    batch_size: int = 64
    schedule: Schedule = "one-cycle"
    lr: float = 0.1
    warmup: float = 0.3
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    min_scale: float | None = None
    pca_color: float = 0.0
    ema_decay: float | None = None
    clip_norm: float | None = None
    amp: bool = False
    channels_last: bool = False
    compile: bool = False
    gradual: GradualSchedule | None = None
    gradual_share: float = 0.5
    gradual_order: GradualOrder = "together"
    gradual_start: float = 1.0
    select: Select = "val"
    seed: int = 0
    engine: Engine = "dense"
    norm_statistics: NormStatistics = "all"

    def __post_init__(self) -> None:
        _check_types(self)
        stones = self.milestones
        rising = all(a < b for a, b in zip((0, *stones), (*stones, self.epochs), strict=True))
        rules = {
            "epochs": (self.epochs >= 1, "an int >= 1"),
            "batch_size": (self.batch_size >= 2, "an int >= 2"),
            "schedule": (self.schedule in get_args(Schedule), ", ".join(map(repr, get_args(Schedule)))),
            "lr": (0 < self.lr < math.inf, "a number > 0"),
            "warmup": (0 < self.warmup < 1, "a number in (0, 1)"),
            "milestones": (
                rising if self.schedule == "steps" else not stones,
                f"increasing ints in [1, {self.epochs - 1}] for schedule 'steps', () for 'one-cycle'",
            ),
            "gamma": (0 < self.gamma <= 1, "a number in (0, 1]"),
            "momentum": (0 <= self.momentum < 1, "a number in [0, 1)"),
            "nesterov": (not self.nesterov or self.momentum > 0, "False where momentum is 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "a number >= 0"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "a number in [0, 1)"),
            "shift": (self.shift >= 0 and not (self.shift and self.min_scale), "an int >= 0, 0 with min_scale"),
            "min_scale": (self.min_scale is None or 0 < self.min_scale <= 1, "a number in (0, 1], or None"),
            "pca_color": (0 <= self.pca_color < math.inf, "a number >= 0"),
            "ema_decay": (self.ema_decay is None or 0 < self.ema_decay < 1, "a number in (0, 1), or None"),
            "clip_norm": (self.clip_norm is None or 0 < self.clip_norm < math.inf, "a number > 0, or None"),
            "gradual": (
                self.gradual is None or self.gradual in get_args(GradualSchedule),
                f"{', '.join(map(repr, get_args(GradualSchedule)))}, or None",
            ),
            "gradual_share": (
                0 < self.gradual_share <= 1,
                "a number in (0, 1]: neurons do not die after the end of the run",
            ),
            "gradual_order": (
                self.gradual_order in get_args(GradualOrder),
                ", ".join(map(repr, get_args(GradualOrder))),
            ),
            "gradual_start": (0 < self.gradual_start <= 1, "a keep probability in (0, 1]"),
            "select": (self.select in get_args(Select), ", ".join(map(repr, get_args(Select)))),
            "seed": (0 <= self.seed < 2**63, "an int in [0, 2**63)"),
            "engine": (
                self.engine in get_args(Engine) and not (self.compile and self.engine != "dense"),
                ", ".join(map(repr, get_args(Engine))) + "; 'dense' with compile",
            ),
            "norm_statistics": (
                self.norm_statistics in get_args(NormStatistics)
                and not (self.norm_statistics == "live" and (self.engine == "dense" or self.gradual is not None)),
                ", ".join(map(repr, get_args(NormStatistics))) + "; 'all' with engine 'dense', or with gradual",
            ),
        }
        check_rules("The training option {name} is not usable.", vars(self), rules)

    @classmethod
    def paper_cifar(cls) -> TrainConfig:
        """The authors' CIFAR-10 training: 350 epochs, lr divided by 10 at 150 and 250, crop with padding 4, flip."""
        return cls(
            epochs=350,
            batch_size=128,
            schedule="steps",
            milestones=(150, 250),
            nesterov=False,
            shift=4,
            flip=True,
        )

    @classmethod
    def paper_mnist(cls) -> TrainConfig:
        """The authors' MNIST training: 50 epochs, lr divided by 10 at 20 and 40, flip; the rest as for CIFAR-10."""
        return cls(epochs=50, batch_size=128, schedule="steps", milestones=(20, 40), nesterov=False, flip=True)

    @classmethod
    def fast(cls) -> TrainConfig:
        """One cycle of 24 epochs for small colour images; not the paper's."""
        return cls(epochs=24, batch_size=128, lr=0.2, shift=4, flip=True)

    def lasting(self, epochs: int) -> TrainConfig:
        """The same schedule over another number of epochs; milestones move in proportion.

        Raises:
            SpecError: ``epochs`` is not an int >= 1, or leaves no epoch between two milestones.
        """
        stones = tuple(round(stone * epochs / self.epochs) for stone in self.milestones)
        return dataclasses.replace(self, epochs=epochs, milestones=stones)

    def to_json(self) -> str:
        """Serialise to JSON text; :meth:`from_json` is the exact inverse.

        Options that are younger than this format, such as ``pca_color``, are left out where they have their default.
        """
        defaults = {item.name: item.default for item in dataclasses.fields(self)}
        raw = dataclasses.asdict(self)
        options = {name: value for name, value in raw.items() if name not in _LATER or value != defaults[name]}
        return json.dumps(options, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> TrainConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            SpecError: it is no such text, or a value in it is not allowed.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            return cls(**{**raw, "milestones": tuple(raw.get("milestones", ()))})
        except (AttributeError, TypeError, ValueError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError(
                f"This is no training configuration ({error}).", text[:200], "what to_json() wrote"
            ) from error


def smoothing_for(true_class: float, num_classes: int) -> float:
    """The ``label_smoothing`` of torch under which the true class has probability ``true_class``.

    torch gives every class s / K and adds 1 - s to the true one, so that s = (1 - t) K / (K - 1). The paper's 0.9,
    and 0.1 / 9 for each of the nine other classes, is s = 1/9.

    Args:
        true_class: target probability t of the true class, in [1 / K, 1].
        num_classes: K, >= 2.

    Raises:
        SpecError: an argument is out of range.
    """
    if num_classes < 2 or not 1 / num_classes <= true_class <= 1:
        raise SpecError(
            "This is no target probability.", (true_class, num_classes), "a number in [1 / K, 1] for K >= 2 classes"
        )
    return (1 - true_class) * num_classes / (num_classes - 1)


_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,)}


def _check_types(config: TrainConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind, _, optional = str(field.type).partition(" | ")
        if kind not in _KINDS or (optional and value is None):
            continue
        # A bool is an int to Python; here it is a mistake.
        if not isinstance(value, _KINDS[kind]) or isinstance(value, bool) != (kind == "bool"):
            raise SpecError(f"The training option {field.name} is not usable.", value, f"of type {field.type}")
    stones = config.milestones
    if not isinstance(stones, tuple) or not all(isinstance(s, int) and not isinstance(s, bool) for s in stones):
        raise SpecError("The training option milestones is not usable.", stones, "a tuple of ints")
