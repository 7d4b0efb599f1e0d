"""Transfer attacks from public models: a target holds an image only if it holds it under every source and attack."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.attacks.distilled import target_queries
from dcn_plugin.data import LabelledImages
from dcn_plugin.evaluate.adversarial_set import AdversarialSet, passes_of
from dcn_plugin.evaluate.arguments import (
    check_attacks,
    check_images,
    check_models,
)
from dcn_plugin.evaluate.cache_keys import Key
from dcn_plugin.evaluate.data_checks import check_all_names
from dcn_plugin.evaluate.predictions import correct, ran_on
from dcn_plugin.evaluate.protocol import ROUNDING, Protocol
from dcn_plugin.evaluate.protocols.transfer import CleanAnswers
from dcn_plugin.evaluate.records import Result, Rounding
from dcn_plugin.evaluate.relations import closest, relation
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session, Unit
from dcn_plugin.support.processes import whole

__all__ = ["PROTOCOL", "tapm"]


def tapm(
    sources: Mapping[str, nn.Module],
    targets: Mapping[str, nn.Module],
    attacks: Sequence[Attack],
    data: LabelledImages,
    *,
    training_seed: int | None = None,
    rounding: Rounding = "none",
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
    seed: int | None = None,
) -> Iterator[Result]:
    """Measure every target under the worst of all sources and attacks, image by image.

    The adversarial images are those of :func:`transfer`: with a store, either function reuses what the other made.

    Args:
        sources: name -> model to attack, the public models.
        targets: name -> model to measure.
        attacks: each runs once a source.
        data: the clean images.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        rounding: see :class:`AdversarialSet`.
        batch_size: images at a time.
        store: finished records and images are kept there as they come, and reused.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; None: this process alone.
            All of them end with the same records, and the first one writes them.
        progress: show a progress bar on stderr; where that is no terminal, a line for every finished cell.
        seed: the name of ``training_seed`` before 0.2.

    Yields:
        One record a target; protocol "tapm". ``n_counted`` are the images the target has right when clean,
        ``n_defended`` those of them it has right under every source and attack; ``n_correct`` is the same number, so
        ``accuracy_all`` is the accuracy under TAPM. ``figures``: "worst_single_accuracy", the accuracy on all images
        under the one source and attack that is worst for the target as a whole, and "worst_single", which that is; with
        a :class:`~dcn_plugin.attacks.DistilledSource` also "target_queries", the answers that sources were trained on.
        ``largest_change`` is that of all sources and attacks, None where their norms differ. ``relation`` is that of
        the source that is closest to the target.

    Raises:
        SpecError: no source, target or attack, or an argument of the wrong type; or the processes have different models
            or data.
        DataError: ``data`` is no set of labelled images.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Example:
        >>> records = tapm({"plain": plain}, {"net": net}, [PGD(eps=16 / 255)], data, training_seed=0)
        >>> [(record.protocol, record.target) for record in records]
        [('tapm', 'net')]

    Source: Sitawarin, Chang, Huang, Altoyan, Wagner 2024, "PubDef", arXiv 2310.17645, section 3.
    """
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    attacked, measured = check_models(sources, "source of TAPM"), check_models(targets, "target of TAPM")
    data = check_images(data)
    sets = session.adversarial_sets(attacked, check_attacks(attacks, "attack of TAPM"), data, rounding)
    check_all_names(data, attacked, measured)
    clean = CleanAnswers(measured, data, attacked, batch_size=session.batch_size, team=session.team)
    unit = Unit.whole(
        "",  # it tells of each set
        functools.partial(_key, session, sets, measured),
        functools.partial(_measure, session, sets, measured, clean),
    )
    return session.measure("TAPM", [unit], count=1, size=len(sets) * len(data))


def _key(session: Session, sets: Sequence[AdversarialSet], targets: Mapping[str, nn.Module]) -> Key | None:
    made_from = [{"name": images.name, "set": images.key} for images in sets]
    models = {name: session.model_key(target) for name, target in targets.items()}
    if None in models.values() or any(images["set"] is None for images in made_from):
        return None
    return {"protocol": "tapm", "sets": made_from, "targets": models, "seed": session.training_seed}


def _measure(
    session: Session,
    sets: Sequence[AdversarialSet],
    targets: Mapping[str, nn.Module],
    clean: CleanAnswers,
    bar: Any,
) -> list[Result]:
    data = sets[0].data
    # Source and attack -> how many images each target has right.
    singles: dict[str, list[tuple[int, str]]] = {name: [] for name in targets}
    defended = {name: clean[name].clone() for name in targets}
    furthest = 0.0
    passes: Counter[str] = Counter()
    for number, images in enumerate(sets, 1):
        parts = []
        for batch in images:
            still_right = [
                correct(target, batch.images, batch.labels, batch_size=session.batch_size, name=name)
                for name, target in targets.items()
            ]
            parts.append((batch.first, (batch.change, batch.queries, batch.backward_passes, *still_right)))
            bar.update(len(batch.images) * session.team.size)
        bar.reach(number * len(data))
        bar.cell(images.title, number, len(sets))
        change, queries, backward, *columns = whole(parts, session.team)
        passes.update(passes_of(queries, backward))
        furthest = max(furthest, float(change.max()))
        for name, still in zip(targets, columns, strict=True):
            defended[name] &= still
            singles[name].append((int(still.sum()), f"{images.name} / {images.attack!r}"))
    one_norm = len({images.attack.change_norm for images in sets}) == 1
    radii = {images.attack.eps for images in sets}
    # A radius of another norm is another radius.
    shared_eps = radii.pop() if len(radii) == 1 and one_norm else None
    sources = {id(images.source): images.source for images in sets}.values()
    asked = [count for count in map(target_queries, sources) if count is not None]
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
                seed=session.training_seed,
                attack="TAPM",
                attack_settings={
                    "sources": ", ".join(dict.fromkeys(images.name for images in sets)),
                    "attacks": "; ".join(dict.fromkeys(repr(images.attack) for images in sets)),
                },
                eps=shared_eps,
                largest_change=furthest if one_norm else None,
                n_forward_passes=passes["n_forward_passes"],
                n_backward_passes=passes["n_backward_passes"],
                rounding=sets[0].rounding,
                n_total=len(data),
                n_clean_correct=int(right.sum()),
                n_counted=int(right.sum()),
                n_defended=int(defended[name].sum()),
                n_correct=int(defended[name].sum()),
                figures={
                    "worst_single_accuracy": fewest / len(data),
                    "worst_single": which,
                    **({"target_queries": sum(asked)} if asked else {}),
                },
                hardware=ran_on(target),
            )
        )
    return results


PROTOCOL = Protocol(
    name="tapm",
    record="tapm",
    title="TAPM",
    help="accuracy under the worst of all sources and attacks, image by image",
    measure=lambda request: tapm(
        request.sources, request.targets, request.attacks, request.data, **request.options, **request.run
    ),
    sources="needed",
    attacks=("modern,eps=8/255",),
    options=(ROUNDING,),
    column="tapm",
    better="higher",
    joint=True,
    figures=("worst_single_accuracy", "worst_single"),
)
