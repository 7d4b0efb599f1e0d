"""Transfer attacks from public models: a target holds an image only if it holds it under every source and attack."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.evaluate.adversarial_set import AdversarialSet
from dcn_plugin.evaluate.arguments import check_attacks, check_count, check_images, check_models
from dcn_plugin.evaluate.cache_keys import Key, model_key
from dcn_plugin.evaluate.data_checks import check_all_names
from dcn_plugin.evaluate.predictions import correct, ran_on
from dcn_plugin.evaluate.protocols.transfer import CleanAnswers
from dcn_plugin.evaluate.records import Result, Rounding
from dcn_plugin.evaluate.relations import closest, relation
from dcn_plugin.evaluate.run_directory import RunDirectory, remember
from dcn_plugin.support.processes import Team, whole
from dcn_plugin.support.progress import progress_bar

__all__ = ["tapm"]


def tapm(
    sources: Mapping[str, nn.Module],
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
    """Measure every target under the worst of all sources and attacks, image by image.

    The adversarial images are those of :func:`transfer`: with a store, either function reuses what the other made.

    Args:
        sources: name -> model to attack, the public models.
        targets: name -> model to measure.
        attacks: each runs once a source.
        data: the clean images.
        seed: of the run that made the models; it goes into the records.
        rounding: see :class:`AdversarialSet`.
        batch_size: images at a time.
        store: finished records and images are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.

    Yields:
        One record a target; protocol "tapm". ``n_counted`` are the images the target has right when clean,
        ``n_defended`` those of them it has right under every source and attack; ``n_correct`` is the same number, so
        ``accuracy_all`` is the accuracy under TAPM. ``figures``: "worst_single_accuracy", the accuracy on all images
        under the one source and attack that is worst for the target as a whole, and "worst_single", which that is.
        ``largest_change`` is that of all sources and attacks, None where their norms differ. ``relation`` is that of
        the source that is closest to the target.

    Raises:
        SpecError: no source, target or attack, or an argument of the wrong type; or the processes have different models
            or data.
        DataError: ``data`` is no set of labelled images.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Source: Sitawarin, Chang, Huang, Altoyan, Wagner 2024, "PubDef", arXiv 2310.17645, section 3.
    """
    attacked, measured = check_models(sources, "source of TAPM"), check_models(targets, "target of TAPM")
    data, team, seed = check_images(data), Team.of(accelerator), check_count(seed, "seed", least=0)
    chosen = check_attacks(attacks, "attack of TAPM")
    made = AdversarialSet.of_all(attacked, chosen, data, rounding, batch_size, store, team)
    check_all_names(data, attacked, measured)
    clean = CleanAnswers(measured, data, attacked, batch_size=made[0].batch_size, team=team)
    return _results(made, measured, clean, seed, progress)


def _results(
    made: Sequence[AdversarialSet], targets: Mapping[str, nn.Module], clean: CleanAnswers, seed: int, progress: bool
) -> Iterator[Result]:
    store, team = made[0].store, made[0].team
    with progress_bar(len(made) * len(made[0].data), "TAPM", show=progress, team=team) as bar:
        yield from remember(
            store,
            functools.partial(_key, made, targets, seed),
            functools.partial(_measure, made, targets, clean, seed, bar),
            team=team,
        )


def _key(made: Sequence[AdversarialSet], targets: Mapping[str, nn.Module], seed: int) -> Key | None:
    sets = [{"name": one.name, "set": one.key} for one in made]
    models = {name: model_key(target) for name, target in targets.items()}
    if None in models.values() or any(one["set"] is None for one in sets):
        return None
    return {"protocol": "tapm", "sets": sets, "targets": models, "seed": seed}


def _measure(
    made: Sequence[AdversarialSet], targets: Mapping[str, nn.Module], clean: CleanAnswers, seed: int, bar: Any
) -> list[Result]:
    first = made[0]
    data = first.data
    # Source and attack -> how many images each target has right.
    singles: dict[str, list[tuple[int, str]]] = {name: [] for name in targets}
    held = {name: clean[name].clone() for name in targets}
    furthest = 0.0
    for number, one in enumerate(made, 1):
        parts = []
        for batch in one:
            said = [
                correct(target, batch.images, batch.labels, batch_size=one.batch_size, name=name)
                for name, target in targets.items()
            ]
            parts.append((batch.first, (batch.change, *said)))
            bar.update(len(batch.images) * one.team.size)
        bar.update(number * len(data) - bar.n)
        bar.cell(one.title, number, len(made))
        change, *kept = whole(parts, one.team)
        furthest = max(furthest, float(change.max()))
        for name, still in zip(targets, kept, strict=True):
            held[name] &= still
            singles[name].append((int(still.sum()), f"{one.name} / {one.attack!r}"))
    one_norm = len({one.attack.change_norm for one in made}) == 1
    radii = {one.attack.eps for one in made}
    # A radius of another norm is another radius.
    shared_eps = radii.pop() if len(radii) == 1 and one_norm else None
    sources = {id(one.source): one.source for one in made}.values()
    results = []
    for name, target in targets.items():
        fewest, which = min(singles[name])
        right = clean[name]
        results.append(
            Result(
                protocol="tapm",
                target=name,
                relation=closest(relation(source, target) for source in sources),
                data=data.name,
                data_hash=data.content_hash,
                seed=seed,
                attack="TAPM",
                attack_settings={
                    "sources": ", ".join(dict.fromkeys(one.name for one in made)),
                    "attacks": "; ".join(dict.fromkeys(repr(one.attack) for one in made)),
                },
                eps=shared_eps,
                largest_change=furthest if one_norm else None,
                rounding=first.rounding,
                n_total=len(data),
                n_clean_correct=int(right.sum()),
                n_counted=int(right.sum()),
                n_defended=int(held[name].sum()),
                n_correct=int(held[name].sum()),
                figures={"worst_single_accuracy": fewest / len(data), "worst_single": which},
                hardware=ran_on(target),
            )
        )
    return results
