"""White-box attacks: every network is attacked on itself. They break a defective network; the figure says how fast."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.evaluate.adversarial_set import AdversarialSet
from dcn_plugin.evaluate.arguments import check_count, check_images, check_models
from dcn_plugin.evaluate.cache_keys import Key
from dcn_plugin.evaluate.data_checks import check_all_names, check_fits
from dcn_plugin.evaluate.predictions import ran_on
from dcn_plugin.evaluate.records import Result, Rounding
from dcn_plugin.evaluate.run_directory import RunDirectory, remember
from dcn_plugin.support.processes import Team, whole
from dcn_plugin.support.progress import progress_bar

__all__ = ["whitebox"]


def whitebox(
    targets: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    data: LabelledImages,
    *,
    seed: int,
    rounding: Rounding = "none",
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
) -> Iterator[Result]:
    """Attack every target on itself.

    Args:
        targets: name -> model, images in [0, 1] -> logits.
        attacks: each runs once a target.
        data: the clean images.
        seed: of the run that made the models; it goes into the records.
        rounding: of the images that are kept; whether the target is fooled is judged before.
        batch_size: images at a time.
        store: finished records and images are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.

    Yields:
        Records in the order target, attack; protocol "whitebox". ``n_counted`` are the images the target has right
        when clean, ``n_defended`` those of them that the attack did not turn. An image that is wrong when clean counts
        as lost, so ``accuracy_all`` is the robust accuracy as RobustBench defines it.

    Raises:
        SpecError: no target or no attack, or an argument of the wrong type; or the processes have different models or
            data.
        DataError: ``data`` is no set of labelled images.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Source: paper, appendix, table 12.
    """
    measured = check_models(targets, "target to measure")
    data, team, seed = check_images(data), Team.of(accelerator), check_count(seed, "seed", least=0)
    made = AdversarialSet.of_all(measured, attacks, data, rounding, batch_size, store, team)
    check_all_names(data, measured)
    return _results(made, measured, seed, progress)


def _results(
    made: Sequence[AdversarialSet], targets: Mapping[str, nn.Module], seed: int, progress: bool
) -> Iterator[Result]:
    count, team = len(made[0].data), made[0].team
    fit = functools.cache(lambda: check_fits(made[0].data, targets))

    def measure(one: AdversarialSet, bar: Any) -> list[Result]:
        fit()
        return _measure(one, seed, bar)

    with progress_bar(len(made) * count, "white-box", show=progress, team=team) as bar:
        for number, one in enumerate(made, 1):
            yield from remember(
                one.store, functools.partial(_key, one, seed), functools.partial(measure, one, bar), team=team
            )
            bar.update(number * count - bar.n)
            bar.cell(one.title, number, len(made))


def _key(made: AdversarialSet, seed: int) -> Key | None:
    own = made.key
    return None if own is None else {"protocol": "whitebox", "set": own, "target": made.name, "seed": seed}


def _measure(made: AdversarialSet, seed: int, bar: Any) -> list[Result]:
    parts = []
    for batch in made:
        parts.append((batch.first, (batch.source_correct, batch.fooled, batch.zero_gradient, batch.change)))
        bar.update(len(batch.images) * made.team.size)
    right, fooled, zero_gradient, change = whole(parts, made.team)
    held = int((right & ~fooled).sum())
    return [
        Result(
            protocol="whitebox",
            target=made.name,
            source=made.name,
            relation="same network",
            **made.described,
            seed=seed,
            n_zero_gradient=int(zero_gradient.sum()),
            largest_change=float(change.max()),
            n_clean_correct=int(right.sum()),
            n_counted=int(right.sum()),
            n_defended=held,
            n_correct=held,
            hardware=ran_on(made.source),
        )
    ]
