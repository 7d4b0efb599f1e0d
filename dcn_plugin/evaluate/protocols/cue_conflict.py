"""Cue conflict: images with the shape of one class and the texture of another. Which of the two does a model see?"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.data import CueConflict
from dcn_plugin.errors import DataError, ModelOutputError, SpecError
from dcn_plugin.evaluate.arguments import (
    check_models,
)
from dcn_plugin.evaluate.cache_keys import Key, data_key, digest, surroundings
from dcn_plugin.evaluate.data_checks import check_all_names, check_fit
from dcn_plugin.evaluate.predictions import logits_of, ran_on
from dcn_plugin.evaluate.protocol import Option, Protocol
from dcn_plugin.evaluate.records import Result, Scalar
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session, Unit
from dcn_plugin.evaluate.sharding import own_batches
from dcn_plugin.support.model_state import device_of
from dcn_plugin.support.processes import whole
from dcn_plugin.support.statistics import wilson

__all__ = ["PROTOCOL", "cue_conflict", "cue_decisions"]


def cue_decisions(logits: Tensor, class_map: Sequence[int | None], num_cues: int) -> Tensor:
    """Decide for one of the cue classes: the one with the largest AVERAGE softmax probability over its model classes.

    Averages, not sums: a class with 110 breeds of dog behind it would win too often.

    Args:
        logits: (N, classes).
        class_map: model class -> cue class, or None for a model class that stands for no cue class.
        num_cues: number of cue classes. One that no model class is mapped to is never decided for.

    Returns:
        int64 (N,) in [0, num_cues).

    Source: model-vs-human, ``ImageNetProbabilitiesTo16ClassesMapping`` (its default is the mean).
    """
    average = torch.full((len(logits), num_cues), -torch.inf, dtype=torch.float64)
    for cue in {cue for cue in class_map if cue is not None}:
        members = [index for index, mapped in enumerate(class_map) if mapped == cue]
        # The log of the average, up to a constant of the image: a probability itself may be too small for a float.
        average[:, cue] = logits[:, members].double().logsumexp(dim=1) - math.log(len(members))
    return average.argmax(dim=1)


def cue_conflict(
    targets: Mapping[str, nn.Module],
    data: CueConflict,
    *,
    training_seed: int | None = None,
    class_map: Sequence[int | None] | None = None,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Measure the shape bias of every target: of the answers that name the shape or the texture, the share of shape.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        data: images without those whose shape and texture agree.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        class_map: for each class of the models, the class of ``data`` that it belongs to, or None; see
            :func:`cue_decisions`. None: the models' classes are those of ``data``, in that order. For ImageNet's 1,000
            classes the authors publish the table (model-vs-human, ``human_categories.py``).
        batch_size: images at a time.
        store: finished records are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Raises:
        SpecError: no target, or a map that names a class that is none, or leaves out a class of the data: no
            answer could ever name it. Or the processes have different models or data.
        ModelOutputError: a target does not have as many classes as the map.
        ClassesError: without a map, a target that names its classes otherwise.
        InputSizeError: a target does not take such images; nothing was measured.

    Yields:
        One record a target; protocol "cue-conflict". ``n_counted`` are the answers that name the shape or the texture,
        the figures "n_shape" and "n_texture" those of either; "shape_bias" is n_shape / n_counted with its Wilson
        95 % interval "shape_bias_low", "shape_bias_high", and None where no answer names either. There are
        no clean images.

    Example:
        >>> conflicts = CueConflict("cue-conflict", size=32)  # cue-conflict/airplane/airplane1-bicycle2.png, ...
        >>> model = timm.create_model("resnet18", num_classes=16)
        >>> [record.protocol for record in cue_conflict({"resnet18": model}, conflicts, training_seed=0)]
        ['cue-conflict']

    Source: Geirhos et al. 2019, "ImageNet-trained CNNs are biased towards texture"; Geirhos et al. 2021
    (model-vs-human).
    """
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    measured = check_models(targets, "target to measure")
    if not isinstance(data, CueConflict):
        raise DataError(
            "These are no images of a cue conflict.", type(data).__name__, "a CueConflict of dcn_plugin.data"
        )
    given = range(data.num_classes) if class_map is None else class_map
    cues = tuple(None if cue is None else int(cue) for cue in given)
    _check_map(cues, data)
    if class_map is None:
        check_all_names(data, measured)
    question = _Question(data, cues, session)
    check_once = functools.cache(lambda: _check_targets(measured, question))

    def unit(name: str) -> Unit:
        def measure(bar: Any) -> list[Result]:
            check_once()
            return _measure(question, name, measured[name], bar)

        return Unit.whole(name, functools.partial(question.key, name, measured[name]), measure)

    return session.measure("cue-conflict", map(unit, measured), count=len(measured), size=len(data))


@dataclass(frozen=True, eq=False)
class _Question:
    """What all targets of one call have in common; see :func:`cue_conflict`."""

    data: CueConflict
    cues: tuple[int | None, ...]
    session: Session

    @property
    def settings(self) -> dict[str, Scalar]:
        identity = self.cues == tuple(range(self.data.num_classes))
        return {"class_map": "identity" if identity else digest(self.cues), "model_classes": len(self.cues)}

    def key(self, name: str, target: nn.Module) -> Key | None:
        model = self.session.model_key(target)
        if model is None:
            return None
        return {
            "protocol": "cue-conflict",
            "target": {"name": name, **model},
            "data": data_key(self.data),
            "class_map": list(self.cues),
            "seed": self.session.training_seed,
            "batch_size": self.session.batch_size,
            **surroundings(device_of(target)),
        }


def _measure(question: _Question, name: str, target: nn.Module, bar: Any) -> list[Result]:
    data, parts = question.data, []
    team, batch_size = question.session.team, question.session.batch_size
    for first, images, labels in own_batches(data, batch_size, team):
        logits = logits_of(target, images, batch_size=batch_size, name=name)
        decisions = cue_decisions(logits, question.cues, data.num_classes)
        texture = data.texture_labels[first : first + len(images)]
        parts.append((first, (decisions == labels, decisions == texture)))
        bar.update(len(images) * team.size)
    n_shape, n_texture = (int(flags.sum()) for flags in whole(parts, team))
    counted = n_shape + n_texture
    low, high = wilson(n_shape, counted) if counted else (None, None)
    return [
        Result(
            protocol="cue-conflict",
            target=name,
            data=data.name,
            data_hash=data.content_hash,
            seed=question.session.training_seed,
            attack="cue conflict",
            attack_settings=question.settings,
            n_total=len(data),
            n_counted=counted,
            figures={
                "shape_bias": n_shape / counted if counted else None,
                "shape_bias_low": low,
                "shape_bias_high": high,
                "n_shape": n_shape,
                "n_texture": n_texture,
            },
            hardware=ran_on(target),
        )
    ]


def _check_targets(targets: Mapping[str, nn.Module], question: _Question) -> None:
    for name, target in targets.items():
        count = check_fit(target, question.data, name=name, classes=False)
        if count != len(question.cues):
            raise ModelOutputError(
                f"The classes of {name} are not those of the class map.",
                count,
                f"{len(question.cues)} classes",
                "pass class_map with one entry a class of the model",
            )


def _check_map(cues: Sequence[int | None], data: CueConflict) -> None:
    named = {cue for cue in cues if cue is not None}
    strange = sorted(cue for cue in named if not 0 <= cue < data.num_classes)
    if strange:
        raise SpecError(
            f"The class map names classes that {data.name!r} does not have.",
            strange,
            f"0 .. {data.num_classes - 1}, or None",
        )
    missing = sorted(set(data.labels.tolist() + data.texture_labels.tolist()) - named)
    if missing:
        raise SpecError(
            "The class map leaves out shapes or textures of the images; no answer could name them, and the bias "
            "would lean to the others.",
            [data.class_names[cue] for cue in missing],
            f"a model class for each of the classes of {data.name!r}",
            "use a model that knows them, or images of the classes it knows",
        )


PROTOCOL = Protocol(
    name="cue-conflict",
    record="cue-conflict",
    title="Shape bias",
    help="shape bias on cue-conflict images (model-vs-human's naming)",
    measure=lambda request: cue_conflict(request.targets, request.data, **request.options, **request.run),
    data="cues",
    options=(
        Option(
            name="class_map",
            kind="class map",
            metavar="FILE",
            help="JSON list: for each class of the models the number of its cue class, or null; default: they are the "
            "same",
        ),
    ),
    strength=None,
    figure="shape_bias",
    figures=("shape_bias", "shape_bias_low", "shape_bias_high", "n_shape", "n_texture"),
)
