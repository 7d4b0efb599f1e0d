"""Transfer attacks: images made on a source network, shown to other networks.

Both denominators are reported. The paper's counts the images on which the attack fooled the source AND which
the target classifies correctly when clean; ``accuracy_all`` counts every image.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

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
from dcn_plugin.evaluate.data_checks import check_all_names, check_fits
from dcn_plugin.evaluate.predictions import correct, correct_on, ran_on
from dcn_plugin.evaluate.protocol import DEFAULT_ATTACKS, ROUNDING, Protocol
from dcn_plugin.evaluate.records import Result, Rounding
from dcn_plugin.evaluate.relations import relation
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.evaluate.session import Session, Unit, training_seed_of
from dcn_plugin.support.processes import ALONE, Team, whole

__all__ = ["PROTOCOL", "CleanAnswers", "measure_targets", "transfer"]


class CleanAnswers:
    """Which clean images each target classifies correctly: asked once a target, when it is first needed.

    Before the first, all targets and sources are checked against the data, so that no attack runs in vain.
    """

    def __init__(
        self,
        targets: Mapping[str, nn.Module],
        data: LabelledImages,
        sources: Mapping[str, nn.Module],
        *,
        batch_size: int,
        team: Team = ALONE,
    ) -> None:
        self.targets, self.data, self.sources, self.batch_size, self.team = targets, data, sources, batch_size, team
        self._known: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """Bool (N,) on the CPU."""
        if not self._known:
            check_fits(self.data, self.sources, self.targets)
        if name not in self._known:
            self._known[name] = correct_on(
                self.targets[name], self.data, batch_size=self.batch_size, name=name, team=self.team
            )
        return self._known[name]


def transfer(
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
    """Measure every target under every source and attack: the transfer matrix.

    Each set of adversarial images is made once and shown to all targets batch by batch; memory does not grow with the
    data. What the source is to the target (another network, other weights, other masks, the same network) is
    read off the two and stands in the record as ``relation``: that tells gray-box and white-box results apart.

    Args:
        sources: name -> model to attack; :class:`~dcn_plugin.attacks.EnsembleSource` makes one of several. Of a
            :class:`~dcn_plugin.attacks.DistilledSource` the records have the answers it cost in ``figures``,
            "target_queries".
        targets: name -> model to measure. A standard target must be another training run than the source.
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
        Records in the order source, attack, target.

    Raises:
        SpecError: no source, target or attack, or an argument of the wrong type; or the processes have different models
            or data.
        DataError: ``data`` is no set of labelled images.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Example:
        >>> records = transfer({"plain": plain}, {"net": net}, [PGD(eps=16 / 255)], data, training_seed=0)
        >>> [(record.source, record.target, record.n_total) for record in records]
        [('plain', 'net', 16)]

    Source: paper, section 4.1; denominators as in the authors' code.
    """
    session = Session.of(training_seed, seed, batch_size, store, accelerator, progress)
    attacked, measured = check_models(sources, "source to attack"), check_models(targets, "target to measure")
    data = check_images(data)
    sets = session.adversarial_sets(attacked, check_attacks(attacks), data, rounding)
    check_all_names(data, attacked, measured)
    clean = CleanAnswers(measured, data, attacked, batch_size=session.batch_size, team=session.team)
    units = (_unit(session, images, measured, clean) for images in sets)
    return session.measure("transfer", units, count=len(sets), size=len(data))


def measure_targets(
    made: AdversarialSet,
    targets: Mapping[str, nn.Module],
    *,
    training_seed: int | None = None,
    clean: CleanAnswers | None = None,
    bar: Any = None,
    seed: int | None = None,
) -> list[Result]:
    """Show one adversarial set to every target.

    Args:
        made: the images, and the processes that share them. Targets whose records its store has are not asked again.
        targets: name -> model, images in [0, 1] -> logits.
        training_seed: of the run that made the models; it goes into the records as ``seed``.
        clean: the targets' answers on the clean images, where they are known already.
        bar: a progress bar over images.
        seed: the name of ``training_seed`` before 0.2.

    Returns:
        One record a target, protocol "transfer".

    Raises:
        SpecError: the processes have different models or data.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.
    """
    session = Session(
        training_seed=training_seed_of(training_seed, seed),
        batch_size=made.batch_size,
        store=made.store,
        team=made.team,
        progress=False,
    )
    clean = clean or CleanAnswers(
        targets, made.data, {made.name: made.source}, batch_size=made.batch_size, team=made.team
    )
    return session.recall(_unit(session, made, targets, clean), bar)


def _unit(session: Session, images: AdversarialSet, targets: Mapping[str, nn.Module], clean: CleanAnswers) -> Unit:
    """One set of images, whose parts are the targets: a new target reuses the stored images."""

    def measure(names: Sequence[str], bar: Any) -> dict[str, list[Result]]:
        return _measure(session, images, {name: targets[name] for name in names}, clean, bar)

    key = functools.partial(_key, session, images, targets)
    return Unit(title=images.title, parts=tuple(targets), key=key, measure=measure)


def _key(session: Session, images: AdversarialSet, targets: Mapping[str, nn.Module], name: str) -> Key | None:
    made_from, target = images.key, session.model_key(targets[name])
    if made_from is None or target is None:
        return None
    return {
        "protocol": "transfer",
        "set": made_from,
        "source": images.name,
        "target": {"name": name, **target},
        "seed": session.training_seed,
    }


def _measure(
    session: Session, images: AdversarialSet, targets: Mapping[str, nn.Module], clean: CleanAnswers, bar: Any
) -> dict[str, list[Result]]:
    right = {name: clean[name] for name in targets}
    parts = []
    for batch in images:
        still = [
            correct(target, batch.images, batch.labels, batch_size=session.batch_size, name=name)
            for name, target in targets.items()
        ]
        outcome = (batch.source_correct, batch.fooled, batch.zero_gradient, batch.change)
        parts.append((batch.first, (*outcome, batch.queries, batch.backward_passes, *still)))
        if bar is not None:
            bar.update(len(batch.images) * session.team.size)
    source_correct, fooled, zero_gradient, change, queries, backward, *columns = whole(parts, session.team)
    still_correct = dict(zip(targets, columns, strict=True))
    counted = {name: fooled & right[name] for name in targets}
    asked = target_queries(images.source)
    return {
        name: [
            Result(
                protocol="transfer",
                target=name,
                source=images.name,
                relation=relation(images.source, target),
                **images.described,
                seed=session.training_seed,
                n_source_correct=int(source_correct.sum()),
                n_source_fooled=int(fooled.sum()),
                n_zero_gradient=int(zero_gradient.sum()),
                largest_change=float(change.max()),
                **passes_of(queries, backward),
                n_clean_correct=int(right[name].sum()),
                n_counted=int(counted[name].sum()),
                n_defended=int((counted[name] & still_correct[name]).sum()),
                n_correct=int(still_correct[name].sum()),
                figures={} if asked is None else {"target_queries": asked},
                hardware=ran_on(target, source=images.source),
            )
        ]
        for name, target in targets.items()
    }


PROTOCOL = Protocol(
    name="transfer",
    record="transfer",
    title="Transfer attacks",
    help="transfer matrix: images made on every source, shown to every target",
    measure=lambda request: transfer(
        request.sources, request.targets, request.attacks, request.data, **request.options, **request.run
    ),
    sources="needed",
    attacks=DEFAULT_ATTACKS,
    options=(ROUNDING,),
    better="higher",
)
