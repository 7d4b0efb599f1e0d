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
from dcn_plugin.data import LabelledImages
from dcn_plugin.evaluate.adversarial_set import AdversarialSet
from dcn_plugin.evaluate.arguments import check_count, check_images, check_models
from dcn_plugin.evaluate.cache_keys import Key, model_key
from dcn_plugin.evaluate.data_checks import check_all_names, check_fits
from dcn_plugin.evaluate.predictions import correct, correct_on, ran_on
from dcn_plugin.evaluate.records import Result, Rounding
from dcn_plugin.evaluate.relations import relation
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.support.processes import ALONE, Team, whole
from dcn_plugin.support.progress import progress_bar

__all__ = ["CleanAnswers", "measure_targets", "transfer"]


class CleanAnswers:
    """Which clean images each target classifies correctly: asked once a target, when it is first needed.

    Before the first, all targets and sources are held against the data, so that no attack runs in vain.
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
    seed: int,
    rounding: Rounding = "none",
    batch_size: int = 256,
    store: RunDirectory | None = None,
    accelerator: Any = None,
    progress: bool = False,
) -> Iterator[Result]:
    """Measure every target under every source and attack: the transfer matrix.

    Each set of adversarial images is made once and shown to all targets batch by batch; memory does not grow with the
    data. What the source is to the target (another network, other weights, other masks, the same network) is
    read off the two and stands in the record as ``relation``: that tells gray-box and white-box results apart.

    Args:
        sources: name -> model to attack; :class:`~dcn_plugin.attacks.EnsembleSource` makes one of several.
        targets: name -> model to measure. A standard target must be another training run than the source.
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
        Records in the order source, attack, target.

    Raises:
        SpecError: no source, target or attack, or an argument of the wrong type; or the processes have different models
            or data.
        DataError: ``data`` is no set of labelled images.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.

    Source: paper, section 4.1; denominators as in the authors' code.
    """
    attacked, measured = check_models(sources, "source to attack"), check_models(targets, "target to measure")
    data, team, seed = check_images(data), Team.of(accelerator), check_count(seed, "seed", least=0)
    made = AdversarialSet.of_all(attacked, attacks, data, rounding, batch_size, store, team)
    check_all_names(data, attacked, measured)
    clean = CleanAnswers(measured, data, attacked, batch_size=made[0].batch_size, team=team)
    return _results(made, measured, clean, seed, progress)


def _results(
    made: Sequence[AdversarialSet], targets: Mapping[str, nn.Module], clean: CleanAnswers, seed: int, progress: bool
) -> Iterator[Result]:
    first = made[0]
    with progress_bar(len(made) * len(first.data), "transfer", show=progress, team=first.team) as bar:
        for number, one in enumerate(made, 1):
            yield from measure_targets(one, targets, seed=seed, clean=clean, bar=bar)
            bar.update(number * len(first.data) - bar.n)
            bar.cell(one.title, number, len(made))


def measure_targets(
    made: AdversarialSet,
    targets: Mapping[str, nn.Module],
    *,
    seed: int,
    clean: CleanAnswers | None = None,
    bar: Any = None,
) -> list[Result]:
    """Show one adversarial set to every target.

    Args:
        made: the images, and the processes that share them. Targets whose records its store has are not asked again.
        targets: name -> model, images in [0, 1] -> logits.
        seed: of the run that made the models; it goes into the records.
        clean: what the targets say on the clean images, where that is known already.
        bar: a progress bar over images.

    Returns:
        One record a target, protocol "transfer".

    Raises:
        SpecError: the processes have different models or data.
        LabelError, ModelOutputError: as the attack does.
        ClassesError, InputSizeError: a model's classes or images are not those of the data; nothing was measured.
    """
    store, team = made.store, made.team
    clean = clean or CleanAnswers(targets, made.data, {made.name: made.source}, batch_size=made.batch_size, team=team)
    own = made.key if store is not None or team.size > 1 else None
    keys = {name: _unit_key(own, name, target, made, seed) for name, target in targets.items()}
    team.check(keys)
    known = {} if store is None else team.first(functools.partial(_known, store, keys))
    missing = {name: target for name, target in targets.items() if name not in known}
    if missing:
        known |= _measure(made, missing, clean, seed, bar)
        for name in missing:
            key = keys[name]
            if store is not None and key is not None and team.leads:
                store.write_unit(key, [known[name]])
    elif bar is not None:
        bar.update(len(made.data))
    return [known[name] for name in targets]


def _known(store: RunDirectory, keys: Mapping[str, Key | None]) -> dict[str, Result]:
    """The records that the store has."""
    found = {name: store.read_unit(key) for name, key in keys.items() if key is not None}
    return {name: records[0] for name, records in found.items() if records}


def _unit_key(own: Key | None, name: str, target: nn.Module, made: AdversarialSet, seed: int) -> Key | None:
    asked = None if own is None else model_key(target)
    if asked is None:
        return None
    return {"protocol": "transfer", "set": own, "source": made.name, "target": {"name": name, **asked}, "seed": seed}


def _measure(
    made: AdversarialSet, targets: Mapping[str, nn.Module], clean: CleanAnswers, seed: int, bar: Any
) -> dict[str, Result]:
    right = {name: clean[name] for name in targets}
    parts = []
    for batch in made:
        still = [
            correct(target, batch.images, batch.labels, batch_size=made.batch_size, name=name)
            for name, target in targets.items()
        ]
        parts.append((batch.first, (batch.source_correct, batch.fooled, batch.zero_gradient, batch.change, *still)))
        if bar is not None:
            bar.update(len(batch.images) * made.team.size)
    source_correct, fooled, zero_gradient, change, *kept = whole(parts, made.team)
    held = dict(zip(targets, kept, strict=True))
    counted = {name: fooled & right[name] for name in targets}
    return {
        name: Result(
            protocol="transfer",
            target=name,
            source=made.name,
            relation=relation(made.source, target),
            **made.described,
            seed=seed,
            n_source_correct=int(source_correct.sum()),
            n_source_fooled=int(fooled.sum()),
            n_zero_gradient=int(zero_gradient.sum()),
            largest_change=float(change.max()),
            n_clean_correct=int(right[name].sum()),
            n_counted=int(counted[name].sum()),
            n_defended=int((counted[name] & held[name]).sum()),
            n_correct=int(held[name].sum()),
            hardware=ran_on(target, source=made.source),
        )
        for name, target in targets.items()
    }
