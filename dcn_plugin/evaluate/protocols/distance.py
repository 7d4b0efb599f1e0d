"""How far the nearest adversarial image is that an attack finds: the protocol of the Boundary attack, and its like."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.adversarial_set import AdversarialSet, passes_of
from dcn_plugin.evaluate.arguments import (
    check_attack,
    check_attacks,
    check_count,
    check_images,
    check_models,
)
from dcn_plugin.evaluate.cache_keys import Key
from dcn_plugin.evaluate.data_checks import check_all_names, check_fits
from dcn_plugin.evaluate.predictions import correct, ran_on
from dcn_plugin.evaluate.protocol import Option, Protocol, Request
from dcn_plugin.evaluate.records import Result, Scalar
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session, Unit
from dcn_plugin.support.processes import whole
from dcn_plugin.support.statistics import median_interval

__all__ = ["PROTOCOL", "minimal_distance"]


def minimal_distance(
    targets: Mapping[str, nn.Module],
    attack: Attack,
    data: LabelledImages,
    *,
    training_seed: int | None = None,
    count: int | None = 500,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Attack every target without a bound on the change, and take the median distance.

    The score of an image is ||delta||_2^2 / (C * H * W), images in [0, 1]. An image without an adversarial one (a
    failed start) has no distance and does not count; it is never taken for a distance of 0.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        attack: BoundaryAttack, HopSkipJump, CW, or any other without an ``eps``.
        data: the clean images.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        count: the first this many images that the target classifies correctly (the paper's 500); None: all.
        batch_size: images at a time.
        store: finished records and batches of images are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Yields:
        One record a target; protocol "boundary", "hopskipjump", "cw": the attack's name. ``n_total`` are the images
        up to the last that was attacked, ``n_counted`` those with a distance. ``figures``: "median_distance",
        "distance_low" and "distance_high" (its 95 % interval), "mean_queries" and "max_queries" an image.

    Raises:
        SpecError: no target, a bounded attack, ``count`` below 1, or an argument of the wrong type; or the processes
            have different models or data.
        DataError: ``data`` is no set of labelled images.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Example:
        >>> records = minimal_distance({"net": net}, HopSkipJump(max_queries=100), data, training_seed=0, count=2)
        >>> [record.protocol for record in records]
        ['hopskipjump']

    Source: paper, section 4.3, table 6; the authors' code (docs: concepts/authors-code).
    """
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    measured, attack = check_models(targets, "target to measure"), check_attack(attack)
    if attack.eps is not None:
        raise SpecError("A distance asks for an attack without a bound.", repr(attack), "e.g. BoundaryAttack()")
    most = None if count is None else check_count(count, "number of images")
    data = check_images(data)
    check_all_names(data, measured)

    def units() -> Iterator[Unit]:
        check_fits(data, measured)
        for name, target in measured.items():
            # The first process alone: it stops where it has enough, and costs next to nothing beside the attack.
            limit = session.team.first(functools.partial(_images_until, target, data, most, session.batch_size, name))
            images = session.adversarial_set(name, target, attack, data, limit=limit)
            key, measure = functools.partial(_key, session, images), functools.partial(_measure, session, images)
            yield Unit.whole(images.title, key, measure)

    return session.measure(attack.name, units(), count=len(measured), size=most or len(data))


def _images_until(target: nn.Module, data: LabelledImages, count: int | None, batch_size: int, name: str) -> int:
    """How many images of the set hold the first ``count`` that the target has right; all if there are fewer."""
    if count is None:
        return len(data)
    passed = right = 0
    for images, labels in data.batches(batch_size):
        flags = correct(target, images, labels, batch_size=batch_size, name=name)
        if right + int(flags.sum()) >= count:
            return passed + int((flags.cumsum(0) == count - right).nonzero()[0]) + 1
        passed, right = passed + len(flags), right + int(flags.sum())
    return len(data)


def _key(session: Session, images: AdversarialSet) -> Key | None:
    made_from = images.key
    if made_from is None:
        return None
    return {"protocol": "distance", "set": made_from, "target": images.name, "seed": session.training_seed}


def _measure(session: Session, images: AdversarialSet, bar: Any) -> list[Result]:
    parts = []
    for batch in images:
        passes = (batch.queries, batch.backward_passes)
        parts.append((batch.first, (batch.source_correct, batch.started, batch.fooled, batch.distance, *passes)))
        bar.update(int(batch.source_correct.sum()) * session.team.size)
    right, started, fooled, distance, queries, backward = whole(parts, session.team)
    distances = distance[fooled].tolist()
    low, high = median_interval(distances) if distances else (None, None)
    counts = queries[right].double()
    figures: dict[str, Scalar] = {
        "median_distance": float(distance[fooled].quantile(0.5)) if distances else None,
        "distance_low": low,
        "distance_high": high,
        "mean_queries": float(counts.mean()) if len(counts) else None,
        "max_queries": int(counts.max()) if len(counts) else None,
    }
    return [
        Result(
            protocol=images.attack.name.removesuffix("Attack").lower(),
            target=images.name,
            **images.described,
            seed=session.training_seed,
            n_clean_correct=int(right.sum()),
            n_counted=len(distances),
            n_failed_starts=int((~started).sum()),
            **passes_of(queries, backward),
            figures=figures,
            hardware=ran_on(images.source),
        )
    ]


def _measure_all(request: Request) -> Iterator[Result]:
    sessions = [
        minimal_distance(request.targets, attack, request.data, **request.options, **request.run)
        for attack in check_attacks(request.attacks)
    ]
    return itertools.chain.from_iterable(sessions)


PROTOCOL = Protocol(
    name="distance",
    record="",
    title="Distance to the nearest adversarial image",
    help="median distance to the nearest image that {attack} finds",
    measure=_measure_all,
    commands=("boundary", "hopskipjump", "cw"),
    attacks=(),
    options=(Option(name="count", kind="count", default=500, metavar="N", help="images the target has right"),),
    strength=None,
    figure="median_distance",
    partial=True,
    figures=("median_distance", "distance_low", "distance_high", "mean_queries", "max_queries"),
)
