"""A source that is trained on a target's answers: what an attacker gets who may ask, and sees classes alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_plugin.attacks import DistilledSource, check_labels
from dcn_plugin.attacks.checks import check_answers
from dcn_plugin.attacks.dtypes import as_input, model_dtype
from dcn_plugin.checkpoint.train_config import TrainConfig
from dcn_plugin.data import ImageSet, LabelledImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.arguments import check_count, check_images, check_model, check_number
from dcn_plugin.evaluate.data_checks import check_count as check_classes
from dcn_plugin.evaluate.data_checks import check_fit, check_names, refusals
from dcn_plugin.support.model_state import device_of, eval_mode, frozen_weights
from dcn_plugin.training.history import History
from dcn_plugin.training.loop import train

__all__ = ["Distillation", "answers_needed", "distill_source"]


@dataclass(frozen=True, eq=False)
class Distillation:
    """What came of asking a target.

    Args:
        source: the student, in eval mode, with the number of answers it cost.
        answers: every image that the target was asked about, in the order of asking, with the class it said.
        histories: of the training of each round.
    """

    source: DistilledSource
    answers: ImageSet
    histories: tuple[History, ...]

    @property
    def queries(self) -> int:
        """Images that the target was asked about."""
        return len(self.answers)


def answers_needed(given: int, *, rounds: int, budget: int) -> int:
    """How many images :func:`distill_source` asks a target about.

    Example:
        >>> answers_needed(100, rounds=4, budget=600), answers_needed(100, rounds=3, budget=600)
        (600, 400)
    """
    return min(budget, given << (rounds - 1))


def distill_source(
    student: nn.Module,
    target: nn.Module,
    data: LabelledImages,
    *,
    budget: int,
    rounds: int = 4,
    step: float = 0.1,
    config: TrainConfig | None = None,
    seed: int = 0,
    batch_size: int = 256,
    accelerator: Any = None,
    progress: bool = False,
    name: str = "",
) -> Distillation:
    """Train a student on the classes that a target says, first of images at hand, then of images that it moves itself.

    The first round asks about the images of ``data``. Each further round moves every image known so far by ``step``
    along the sign of the student's gradient, towards the class that the target said, asks about the results, and trains
    on all: the number of images doubles from round to round. Where the budget ends, as many of the new images as it
    allows are asked about, chosen at random, and that round is the last. Each image is asked about once; labels of
    ``data`` are not looked at, and the target is asked about nothing else.

    Args:
        student: images in [0, 1] -> logits, with the classes of ``data``; standard or defective (with masks of its
            own). It is trained in place, each round going on with the weights of the last.
        target: images in [0, 1] -> logits, of which only the largest is looked at, or class numbers (N,). It is in eval
            mode while it is asked.
        data: what the attacker has.
        budget: images that the target may be asked about, at least those of ``data``.
        rounds: at most; 1 moves no image.
        step: change of a pixel, in units of [0, 1] images; 0.1 as published.
        config: of each round's training; its seed is ``seed`` plus the number of the round.
        seed: of the choice where the budget ends, and of the trainings.
        batch_size: images at a time while the target is asked and gradients are taken.
        accelerator: see :func:`train`.
        progress: show a progress bar of each training.
        name: shown beside it.

    Returns:
        The source and all answers.

    Raises:
        SpecError: a number is out of range, the budget does not cover the images at hand, or student and target are
            one network. Nothing has been asked then, as with the next three.
        DataError: ``data`` is no set of labelled images.
        ClassesError: the student's classes are not those of the data; or the target's, which the first answer shows.
        InputSizeError, MaskShapeError: likewise of sizes.
        LabelError: the target says a class that the data do not have.
        ModelOutputError: the target returns neither logits nor class numbers.

    Example:
        >>> asked = distill_source(plain, net, data, budget=40, rounds=3, config=TrainConfig(epochs=1, batch_size=8))
        >>> asked.queries, asked.source.target_queries
        (40, 40)

    Source: Papernot et al. 2017, arXiv 1602.02697 (Jacobian-based augmentation; a random choice at the end of the
    budget stands for their reservoir sampling, and weights are carried from round to round).
    """
    student, target = check_model(student, name="the student"), check_model(target, name="the target")
    data = check_images(data)
    budget, rounds = check_count(budget, "query budget"), check_count(rounds, "number of rounds")
    batch_size, seed = check_count(batch_size, "batch size"), check_count(seed, "seed", least=0)
    step = check_number(step, "step of an image")
    if not 0 < step <= 1:
        raise SpecError("The step of an image is not usable.", step, "a number in (0, 1]", "0.1 as published")
    if budget < len(data):
        raise SpecError(
            "The query budget does not cover the images at hand: each of them is one query.",
            budget,
            f">= {len(data)}",
            "hand over fewer images, e.g. data.subset(torch.arange(100))",
        )
    if {id(module) for module in student.modules()} & {id(module) for module in target.modules()}:
        raise SpecError(
            "Student and target are one network, or share a part: that is no attacker who only asks.",
            type(student).__name__,
            "two networks",
            "build the student anew",
        )
    check_fit(student, data)
    check_names(target, data)
    config = dataclasses.replace(config or TrainConfig(), select="last")
    generator = torch.Generator().manual_seed(seed)
    known: dict[str, Tensor] = {}
    histories: list[History] = []
    fresh = torch.cat([images.float().cpu() for images, _ in data.batches(batch_size)])
    for number in range(rounds):
        known = _joined(known, fresh, _answers(target, fresh, data, batch_size))
        answers = ImageSet(known["images"], known["labels"], data.num_classes, f"{data.name}, as answered")
        settings = dataclasses.replace(config, seed=seed + number)
        trained = train(
            student, answers, settings, accelerator=accelerator, progress=progress, name=f"{name} round {number + 1}"
        )
        histories.append(trained.history)
        left = budget - len(answers)
        if number + 1 == rounds or not left:
            break
        places = torch.randperm(len(answers), generator=generator)[:left].sort().values
        fresh = _moved(student, known["images"][places], known["labels"][places], step, batch_size)
    source = DistilledSource(student, target_queries=len(answers)).eval()
    return Distillation(source, answers, tuple(histories))


def _answers(target: nn.Module, images: Tensor, data: LabelledImages, batch_size: int) -> Tensor:
    """The class that the target says of each image: int64 (N,) on the CPU."""
    device, dtype, parts = device_of(target), model_dtype(target), []
    with torch.no_grad(), eval_mode(target), refusals(target, data.shape):
        for batch in images.split(batch_size):
            answers = check_answers(target(as_input(batch.to(device), dtype)), count=len(batch))
            if answers.ndim == 2:
                check_classes(target, answers.shape[1], data)
                answers = answers.argmax(dim=1)
            parts.append(answers.long().cpu())
    said = torch.cat(parts)
    check_labels(said, count=len(images), num_classes=data.num_classes)
    return said


def _joined(known: Mapping[str, Tensor], images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    fresh = {"images": images, "labels": labels}
    return {key: torch.cat([known[key], value]) for key, value in fresh.items()} if known else fresh


def _moved(student: nn.Module, images: Tensor, labels: Tensor, step: float, batch_size: int) -> Tensor:
    """Every image, moved towards the class that the target said of it as the student sees it."""
    device, parts = device_of(student), []
    with eval_mode(student), frozen_weights(student):
        for batch, said in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            leaf = batch.to(device).requires_grad_()
            # The sum: an image's gradient must not depend on its batch.
            loss = F.cross_entropy(student(leaf), said.to(device), reduction="sum")
            (gradient,) = torch.autograd.grad(loss, leaf)
            parts.append((leaf.detach() - step * gradient.sign()).clamp(0, 1).cpu())
    return torch.cat(parts)
