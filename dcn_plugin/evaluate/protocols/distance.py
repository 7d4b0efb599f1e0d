"""How far the nearest adversarial image is that an attack finds: the protocol of the Boundary attack, and its like."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.adversarial_set import AdversarialSet
from dcn_plugin.evaluate.arguments import check_attack, check_count, check_images, check_models, check_store
from dcn_plugin.evaluate.cache_keys import Key
from dcn_plugin.evaluate.data_checks import check_all_names, check_fits
from dcn_plugin.evaluate.predictions import correct, ran_on
from dcn_plugin.evaluate.records import Result, Scalar
from dcn_plugin.evaluate.run_directory import RunDirectory, remember
from dcn_plugin.support.processes import Team, whole
from dcn_plugin.support.progress import progress_bar
from dcn_plugin.support.statistics import median_interval

__all__ = ["minimal_distance"]


def minimal_distance(
    targets: Mapping[str, nn.Module],
    attack: Attack,
    data: LabelledImages,
    *,
    seed: int,
    count: int | None = 500,
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
) -> Iterator[Result]:
    """Attack every target without a bound on the change, and take the median distance.

    The score of an image is ||delta||_2^2 / (C * H * W), images in [0, 1]. An image without an adversarial one (a
    failed start) has no distance and does not count; it is never taken for a distance of 0.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        attack: BoundaryAttack, HopSkipJump, CW, or any other without an ``eps``.
        data: the clean images.
        seed: of the run that made the models; it goes into the records.
        count: the first so many images that the target classifies correctly (the paper's 500); None: all.
        batch_size: images at a time.
        store: finished records and batches of images are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.

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

    Source: paper, section 4.3, table 6; FACTS of the authors' code.
    """
    measured, attack = check_models(targets, "target to measure"), check_attack(attack)
    if attack.eps is not None:
        raise SpecError("A distance asks for an attack without a bound.", repr(attack), "e.g. BoundaryAttack()")
    count = None if count is None else check_count(count, "number of images")
    batch_size, seed = check_count(batch_size, "batch size"), check_count(seed, "seed", least=0)
    data, store = check_images(data), check_store(store)
    check_all_names(data, measured)
    return _results(measured, attack, data, seed, count, batch_size, store, Team.of(accelerator), progress)


def _results(
    targets: Mapping[str, nn.Module],
    attack: Attack,
    data: LabelledImages,
    seed: int,
    count: int | None,
    batch_size: int,
    store: RunDirectory | None,
    team: Team,
    progress: bool,
) -> Iterator[Result]:
    check_fits(data, targets)
    with progress_bar(len(targets) * (count or len(data)), attack.name, show=progress, team=team) as bar:
        for number, (name, target) in enumerate(targets.items(), 1):
            # The first process alone: it stops where it has enough, and costs next to nothing beside the attack.
            limit = team.first(functools.partial(_images_until, target, data, count, batch_size, name))
            made = AdversarialSet(name, target, attack, data, "none", batch_size, store, limit, team)
            yield from remember(
                store, functools.partial(_key, made, seed), functools.partial(_measure, made, seed, bar), team=team
            )
            bar.update(number * (count or len(data)) - bar.n)
            bar.cell(made.title, number, len(targets))


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


def _key(made: AdversarialSet, seed: int) -> Key | None:
    own = made.key
    return None if own is None else {"protocol": "distance", "set": own, "target": made.name, "seed": seed}


def _measure(made: AdversarialSet, seed: int, bar: Any) -> list[Result]:
    parts = []
    for batch in made:
        parts.append((batch.first, (batch.source_correct, batch.started, batch.fooled, batch.distance, batch.queries)))
        bar.update(int(batch.source_correct.sum()) * made.team.size)
    right, started, fooled, distance, queries = whole(parts, made.team)
    found = distance[fooled].tolist()
    low, high = median_interval(found) if found else (None, None)
    asked = queries[right].double()
    figures: dict[str, Scalar] = {
        "median_distance": float(distance[fooled].quantile(0.5)) if found else None,
        "distance_low": low,
        "distance_high": high,
        "mean_queries": float(asked.mean()) if len(asked) else None,
        "max_queries": int(asked.max()) if len(asked) else None,
    }
    return [
        Result(
            protocol=made.attack.name.removesuffix("Attack").lower(),
            target=made.name,
            **made.described,
            seed=seed,
            n_clean_correct=int(right.sum()),
            n_counted=len(found),
            n_failed_starts=int((~started).sum()),
            figures=figures,
            hardware=ran_on(made.source),
        )
    ]
