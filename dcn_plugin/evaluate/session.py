"""How the measurements of one call run: the one loop of all protocols."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.adversarial_set import AdversarialSet
from dcn_plugin.evaluate.arguments import check_count, check_store
from dcn_plugin.evaluate.cache_keys import Key, ModelKeys
from dcn_plugin.evaluate.records import Result, Rounding
from dcn_plugin.evaluate.run_directory import RunDirectory
from dcn_plugin.support.processes import Team
from dcn_plugin.support.progress import progress_bar

__all__ = ["Session", "Unit", "training_seed_of"]


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of a protocol's work. Its parts are measured together and kept apart, each under a key of its own.

    Args:
        title: for the log; "": the unit tells of its progress itself.
        key: part -> what its records depend on; None: that cannot be told, and they are not kept.
        measure: gets the parts that are missing, and the progress bar; part -> its records. All processes call it
            together.
        parts: in the order of the records.
    """

    title: str
    key: Callable[[str], Key | None]
    measure: Callable[[Sequence[str], Any], Mapping[str, Sequence[Result]]]
    parts: Sequence[str] = ("",)

    @classmethod
    def whole(cls, title: str, key: Callable[[], Key | None], measure: Callable[[Any], Sequence[Result]]) -> Unit:
        """A unit of one part."""
        return cls(title=title, key=lambda _: key(), measure=lambda _, bar: {"": measure(bar)})


@dataclass(frozen=True, kw_only=True, eq=False)
class Session:
    """What all measurements of one call share.

    Args:
        training_seed: of the run that made the models; it goes into the records.
        batch_size: images at a time.
        store: where finished records and images are kept and looked for.
        team: the processes that share the images.
        progress: show a progress bar on stderr, or a line a finished unit where that is no terminal.
        model_key: the key of a model, hashed once.
    """

    training_seed: int
    batch_size: int
    store: RunDirectory | None
    team: Team
    progress: bool
    model_key: ModelKeys = field(default_factory=ModelKeys)

    @classmethod
    def of(
        cls,
        training_seed: object,
        seed: object,
        batch_size: object,
        store: object,
        accelerator: Any,
        progress: bool,
        *,
        default_seed: int | None = None,
    ) -> Session:
        """Check what every protocol takes.

        Args:
            training_seed: as the caller gave it, or None.
            seed: its name before 0.2, or None.
            batch_size: an int >= 1.
            store: a run directory, or None.
            accelerator: an :class:`accelerate.Accelerator`, a team, or None.
            progress: whether to show it.
            default_seed: where neither seed is given; None: that is an error.

        Raises:
            SpecError: one is out of range or of the wrong type, or the two seeds differ.
        """
        return cls(
            training_seed=training_seed_of(training_seed, seed, default=default_seed),
            batch_size=check_count(batch_size, "batch size"),
            store=check_store(store),
            team=Team.of(accelerator),
            progress=progress,
        )

    def adversarial_sets(
        self, sources: Mapping[str, nn.Module], attacks: Sequence[Attack], data: LabelledImages, rounding: Rounding
    ) -> list[AdversarialSet]:
        """One set for every source and attack, in that order."""
        pairs = itertools.product(sources.items(), attacks)
        return [self.adversarial_set(name, source, attack, data, rounding=rounding) for (name, source), attack in pairs]

    def adversarial_set(
        self,
        name: str,
        source: nn.Module,
        attack: Attack,
        data: LabelledImages,
        *,
        rounding: Rounding = "none",
        limit: int | None = None,
    ) -> AdversarialSet:
        """What one attack makes of the images on one source, in this session."""
        return AdversarialSet(
            name, source, attack, data, rounding, self.batch_size, self.store, limit, self.team, self.model_key
        )

    def measure(
        self, what: str, units: Iterable[Unit], *, count: int, size: int, unit: str = "image"
    ) -> Iterator[Result]:
        """Measure units one after the other; each is kept before the next one begins.

        Args:
            what: the units are, for the log.
            units: in the order of the records; a unit that is made lazily may run the models first.
            count: of the units.
            size: of each, in the bar's units.
            unit: of the bar.

        Yields:
            The records of each unit, as soon as it is done.

        Raises:
            SpecError: the processes are about to measure different things.
        """
        with progress_bar(count * size, what, show=self.progress, unit=unit, team=self.team) as bar:
            for number, item in enumerate(units, 1):
                yield from self.recall(item, bar)
                bar.reach(number * size)
                if item.title:
                    bar.cell(item.title, number, count)

    def recall(self, unit: Unit, bar: Any = None) -> list[Result]:
        """The records of a unit: those that the store has, and the others measured now and written before this returns.

        Raises:
            SpecError: the processes are about to measure different things.
        """
        keyed = self.store is not None or self.team.size > 1
        keys = {part: unit.key(part) if keyed else None for part in unit.parts}
        self.team.check(keys if len(keys) > 1 else next(iter(keys.values())))
        records: dict[str, Sequence[Result]] = {}
        if self.store is not None:
            records = self.team.first(functools.partial(_kept, self.store, keys))
        missing = [part for part in unit.parts if part not in records]
        if missing:
            records |= unit.measure(missing, bar)
            for part in missing:
                key = keys[part]
                if self.store is not None and key is not None and self.team.leads:
                    self.store.write_unit(key, records[part])
        return [result for part in unit.parts for result in records[part]]


def _kept(store: RunDirectory, keys: Mapping[str, Key | None]) -> dict[str, Sequence[Result]]:
    read = {part: store.read_unit(key) for part, key in keys.items() if key is not None}
    return {part: records for part, records in read.items() if records}


def training_seed_of(training_seed: object, seed: object, *, default: int | None = None) -> int:
    """The seed of the run that made the models, under its name or the one it had before 0.2.

    Raises:
        SpecError: neither is given and there is no default, they differ, or it is no int >= 0.
    """
    given = [value for value in (training_seed, seed) if value is not None]
    if not given and default is None:
        raise SpecError(
            "The seed of the models' training is missing.",
            None,
            "training_seed=0, or another int >= 0",
            "pass the seed of the run that made the models: records of several runs are told apart by it",
        )
    seeds = {check_count(value, "training seed", least=0) for value in given} or {default or 0}
    if len(seeds) > 1:
        raise SpecError("training_seed and seed, its old name, differ.", given, "one of the two")
    return seeds.pop()
