"""Clean images beside the same images changed: noise, shuffled patches, swapped spectra, other renderings.

What these protocols share: every target sees the clean and the changed image, and only images count that ALL targets
classify correctly when clean, so that the targets are compared on the same images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import check_labels
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.arguments import (
    check_images,
    check_models,
    check_number,
)
from dcn_plugin.evaluate.cache_keys import Key, data_key, surroundings
from dcn_plugin.evaluate.data_checks import check_all_names, check_fits
from dcn_plugin.evaluate.predictions import logits_of, predict, ran_on
from dcn_plugin.evaluate.records import Result, Scalar
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session, Unit
from dcn_plugin.evaluate.sharding import own_batches
from dcn_plugin.support.model_state import device_of
from dcn_plugin.support.processes import whole

__all__ = ["Change", "Changed", "changes_in", "measure_changes"]


@dataclass(frozen=True, eq=False)
class Changed:
    """Changed images, and what is to be known about the change.

    Args:
        images: (B, C, H, W) in [0, 1].
        measured: name -> (B,), a number for each image; the record's figures give its mean over the data set.
    """

    images: Tensor
    measured: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One way to change images, at one strength.

    Args:
        name: of the change, for the record's ``attack``.
        apply: (clean images (B, C, H, W), labels (B,), place of the first in the data set) -> changed images of the
            same shape in [0, 1], or :class:`Changed` with numbers about each of them, always of the same names.
        settings: all that ``apply`` depends on besides its arguments, as plain values.
        eps: strength, where it has a unit that fits.
        lures: name -> int64 (N,), by place in the data set: a class that the changed image may be taken for. The
            record's figures then say how many of the counted images were: "n_<name>", and their share "<name>_rate".
    """

    name: str
    apply: Callable[[Tensor, Tensor, int], Tensor | Changed]
    settings: Mapping[str, Scalar] = field(default_factory=dict)
    eps: float | None = None
    lures: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and settings, for a log."""
        return f"{self.name} ({', '.join(f'{name} {value}' for name, value in self.settings.items())})"


def measure_changes(
    protocol: str,
    targets: Mapping[str, nn.Module],
    data: LabelledImages,
    changes: Sequence[Change],
    *,
    training_seed: int | None = None,
    confidence: float = 0.0,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Measure every target under every change, one batch in memory at a time.

    Args:
        protocol: its name in the records.
        targets: name -> model, images in [0, 1] -> logits.
        data: the clean images.
        changes: in the order of the records.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        confidence: an image counts only if every target gives its true class at least this softmax probability.
        batch_size: images at a time.
        store: finished records are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Raises:
        SpecError: no target or no change, ``confidence`` is not in [0, 1], or an argument of the wrong type; or the
            processes have different models or data.
        DataError: ``data`` is no set of labelled images.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Yields:
        Records in the order change, target; one unit of the store a change.
    """
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    return changes_in(session, protocol, targets, data, changes, confidence)


def changes_in(
    session: Session,
    protocol: str,
    targets: Mapping[str, nn.Module],
    data: LabelledImages,
    changes: Sequence[Change],
    confidence: float = 0.0,
) -> Iterator[Result]:
    """:func:`measure_changes` in a session of the caller's."""
    measured = check_models(targets, "target to measure")
    if not changes:
        raise SpecError("There is nothing to measure.", list(changes), "at least one change")
    confidence = check_number(confidence, "confidence")
    if not 0 <= confidence <= 1:
        raise SpecError("The confidence is not usable.", confidence, "a probability in [0, 1]")
    check_all_names(check_images(data), measured)
    question = _Question(protocol, measured, data, confidence, session)
    clean = functools.cache(lambda: _Clean.ask(question))

    def unit(change: Change) -> Unit:
        key, measure = functools.partial(question.key, change), functools.partial(_measure, question, change, clean)
        return Unit.whole(change.title, key, measure)

    return session.measure(protocol, map(unit, changes), count=len(changes), size=len(data))


@dataclass(frozen=True, eq=False)
class _Question:
    """What all changes of one call have in common; see :func:`measure_changes`."""

    protocol: str
    targets: Mapping[str, nn.Module]
    data: LabelledImages
    confidence: float
    session: Session

    def key(self, change: Change) -> Key | None:
        # All targets: which images count depends on each of them.
        models = {name: self.session.model_key(target) for name, target in self.targets.items()}
        if None in models.values():
            return None
        return {
            "protocol": self.protocol,
            "targets": models,
            "data": data_key(self.data),
            "change": {"name": change.name, "settings": dict(change.settings)},
            "seed": self.session.training_seed,
            "confidence": self.confidence,
            "batch_size": self.session.batch_size,
            **surroundings(device_of(next(iter(self.targets.values())))),
        }


@dataclass(frozen=True, eq=False)
class _Clean:
    """The answers on the clean images.

    Args:
        right: name of a target -> bool (N,), which images it classifies correctly.
        counted: bool (N,), the images that all targets classify correctly with the confidence asked for.
    """

    right: dict[str, Tensor]
    counted: Tensor

    @classmethod
    def ask(cls, question: _Question) -> _Clean:
        check_fits(question.data, question.targets)
        team, batch_size = question.session.team, question.session.batch_size
        right: dict[str, Tensor] = {}
        counted = torch.ones(len(question.data), dtype=torch.bool)
        for name, target in question.targets.items():
            parts = []
            for first, images, labels in own_batches(question.data, batch_size, team):
                logits = logits_of(target, images, batch_size=batch_size, name=name)
                check_labels(labels, count=len(labels), num_classes=logits.shape[1])
                true = labels.cpu()[:, None]
                sure = logits.double().softmax(dim=1).gather(1, true)[:, 0] >= question.confidence
                parts.append((first, (logits.argmax(dim=1) == true[:, 0], sure)))
            right[name], confident = whole(parts, team)
            counted &= right[name] & confident
        return cls(right, counted)


def _measure(question: _Question, change: Change, ask_clean: Callable[[], _Clean], bar: Any) -> list[Result]:
    clean, team, batch_size = ask_clean(), question.session.team, question.session.batch_size
    parts = []
    names: tuple[str, ...] = ()
    for first, images, labels in own_batches(question.data, batch_size, team):
        result = change.apply(images, labels, first)
        changed = result if isinstance(result, Changed) else Changed(result)
        names = tuple(changed.measured)
        answers = [
            predict(target, changed.images, batch_size=batch_size, name=name)[0]
            for name, target in question.targets.items()
        ]
        parts.append((first, (labels.cpu(), *answers, *(numbers.cpu() for numbers in changed.measured.values()))))
        bar.update(len(images) * team.size)
    truth, *columns = whole(parts, team)
    predictions = dict(zip(question.targets, columns, strict=False))
    still_correct = {name: classes == truth for name, classes in predictions.items()}
    # The first process has a batch of every set, and so knows the names.
    names = team.first(lambda: names)
    numbers = zip(names, columns[len(predictions) :], strict=True)
    means = {name: float(values.double().mean()) for name, values in numbers}
    settings = dict(change.settings) | ({"confidence": question.confidence} if question.confidence else {})
    return [
        Result(
            protocol=question.protocol,
            target=name,
            data=question.data.name,
            data_hash=question.data.content_hash,
            seed=question.session.training_seed,
            attack=change.name,
            attack_settings=settings,
            eps=change.eps,
            n_total=len(question.data),
            n_clean_correct=int(clean.right[name].sum()),
            n_counted=int(clean.counted.sum()),
            n_defended=int((clean.counted & still_correct[name]).sum()),
            n_correct=int(still_correct[name].sum()),
            figures=_followed(change.lures, predictions[name], clean.counted) | means,
            hardware=ran_on(target),
        )
        for name, target in question.targets.items()
    ]


def _followed(lures: Mapping[str, Tensor], predictions: Tensor, counted: Tensor) -> dict[str, Scalar]:
    """How many of the counted images were taken for the class of each lure."""
    figures: dict[str, Scalar] = {}
    for name, classes in lures.items():
        count, total = int((counted & (predictions == classes)).sum()), int(counted.sum())
        figures |= {f"n_{name}": count, f"{name}_rate": count / total if total else None}
    return figures
