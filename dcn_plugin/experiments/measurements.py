"""The measurements of a recipe: each runs by itself and is kept as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcn_plugin.attacks import Attack
from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import Result, RunDirectory, Team
from dcn_plugin.evaluate.cache_keys import Key, digest, surroundings
from dcn_plugin.evaluate.protocol import Protocol, Request
from dcn_plugin.evaluate.protocols import amplitude
from dcn_plugin.experiments.attack_names import GREY, AttackSpec
from dcn_plugin.experiments.datasets import DATA, RecipeData
from dcn_plugin.experiments.network_store import TrainedNetworks
from dcn_plugin.experiments.networks import Job, jobs_of
from dcn_plugin.experiments.pictures import write_pictures
from dcn_plugin.experiments.recipe import MEASURES, PICTURES, Measure, RecipeSpec
from dcn_plugin.experiments.scales import Scale
from dcn_plugin.support.environment import code_hash

__all__ = ["Column", "Entry", "Measurement", "measure", "measurements_of"]


@dataclass(frozen=True)
class Entry:
    """One number of the table.

    Args:
        row: its row.
        column: its column.
        figure: which figure of the result it is.
        result: the record.
    """

    row: str
    column: str
    figure: str
    result: Result


@dataclass(frozen=True)
class Column:
    """A column of the table, and what its records have in common.

    Args:
        name: in the table.
        source: the name of their source; None: any.
        attack: their attack; None: any.
        strength: of their protocol, see :attr:`Protocol.strength`; None: any.
    """

    name: str
    source: str | None = None
    attack: Attack | None = None
    strength: float | None = None

    def holds(self, record: Result, protocol: Protocol) -> bool:
        """Whether a record of this protocol belongs here."""
        if self.source is not None and self.source != record.source:
            return False
        settings = dict(record.attack_settings)
        if self.attack is not None and (record.attack, settings) != (self.attack.name, dict(self.attack.settings)):
            return False
        return self.strength is None or (
            protocol.strength is not None and protocol.strength.of(record) == self.strength
        )


@dataclass(frozen=True)
class Measurement:
    """One piece of a recipe.

    Args:
        measure: the protocol and its settings.
        seed: of the replicate.
        rows: label -> the networks whose mean logits count.
        sources: likewise, the attacked ones.
        attacks: label -> attack.
        images: this many test images, from the first on; None: all.
        scale: of the run.
        data: name of the data set.
    """

    measure: Measure
    seed: int
    rows: Mapping[str, tuple[Job, ...]]
    sources: Mapping[str, tuple[Job, ...]]
    attacks: Mapping[str, AttackSpec]
    images: int | None
    scale: Scale
    data: str

    @property
    def protocol(self) -> Protocol:
        """What runs. Where there are no stylised images, the amplitude swap asks the same question."""
        protocol = MEASURES[self.measure.protocol]
        return amplitude.PROTOCOL if protocol.data == "pair" and not DATA[self.data].stylized else protocol

    @property
    def jobs(self) -> list[Job]:
        """All networks it needs."""
        return [job for jobs in (*self.rows.values(), *self.sources.values()) for job in jobs]

    @property
    def title(self) -> str:
        """For people."""
        what = ", ".join([*self.sources, *self.attacks])
        return f"{self.measure.protocol}{f' of {what}' if what else ''} on {len(self.rows)} networks, seed {self.seed}"

    @property
    def writes_pictures(self) -> bool:
        """Whether it leaves images for people."""
        return self.measure.protocol in PICTURES

    @property
    def strengths(self) -> dict[float, str]:
        """Strength in a record -> its name in a column, where the measure names strengths."""
        levels, ks = self.measure.levels, self.measure.ks
        return {level * GREY: f"{level:g}" for level in levels} | {float(k): str(k) for k in ks}

    @property
    def options(self) -> dict[str, Any]:
        """The options of the protocol."""
        values = {
            "rounding": self.measure.rounding,
            "levels": list(self.strengths),
            "noise": "clipped",
            "ks": self.measure.ks,
            # Networks of a smoke run are never sure.
            "confidence": self.measure.confidence if self.scale.name != "smoke" else 0.0,
            "count": self.scale.count,
        }
        return {name: value for name, value in values.items() if self.protocol.takes(name)}

    def make_attacks(self) -> dict[str, Attack]:
        """Label -> attack; of a set of attacks each has its name behind the label."""
        attacks: dict[str, Attack] = {}
        for label, spec in self.attacks.items():
            members = spec.make(self.scale, channels=DATA[self.data].shape[0])
            attacks |= {label if len(members) == 1 else f"{label} {attack.name}": attack for attack in members}
        return attacks

    def columns(self) -> list[Column]:
        """The columns of the table that it fills."""
        protocol, measure = self.protocol, self.measure
        pattern = measure.columns if protocol is MEASURES[measure.protocol] else protocol.column
        sources = () if protocol.joint else self.sources
        attacks = {} if protocol.joint else self.make_attacks()
        return [
            Column(
                pattern.format_map({"source": source or "", "attack": label, "level": text, "k": text}),
                source,
                attack,
                strength,
            )
            for source in sources or (None,)
            for label, attack in attacks.items() or (("", None),)
            for strength, text in self.strengths.items() or ((None, ""),)
        ]

    def entries(self, records: Sequence[Result]) -> list[Entry]:
        """The numbers that it puts into the table, whatever the order of its records.

        Raises:
            RecordError: a number has no record.
        """
        columns, figure = self.columns(), self.measure.figure
        places = [(row, column) for column in columns for row in self.rows]
        if self.protocol.itself:
            places = [(row, column) for row in self.rows for column in columns]
        return [Entry(row, column.name, figure, self._record(records, row, column)) for row, column in places]

    def _record(self, records: Sequence[Result], row: str, column: Column) -> Result:
        for record in records:
            if record.target == row and column.holds(record, self.protocol):
                return record
        raise RecordError(f"The measurement {self.title} has no record for a number of its table.", (row, column.name))

    def key(self, stamp: str, device: torch.device) -> Key:
        """What its records depend on, without opening a network: the networks' keys stand for them."""
        measure = self.measure
        settings = {name: value for name, value in self.scale.to_json().items() if name not in ("training", "name")}
        return {
            "protocol": measure.protocol,
            "settings": [
                *(measure.columns, measure.figure, measure.levels, measure.ks),
                *(measure.rounding, measure.confidence, measure.count),
            ],
            "seed": self.seed,
            "rows": {label: [digest(job.key) for job in jobs] for label, jobs in self.rows.items()},
            "sources": {label: [digest(job.key) for job in jobs] for label, jobs in self.sources.items()},
            "attacks": {label: attack.text for label, attack in self.attacks.items()},
            "images": self.images,
            "scale": settings,
            "data": stamp,
            **surroundings(device),
            # How recipes build networks and open data, for which the keys of what a store holds have hashes.
            "code": code_hash("experiments"),
        }


def measurements_of(spec: RecipeSpec, scale: str, seeds: Sequence[int], *, copy: str = "") -> list[Measurement]:
    """All measurements of a recipe at a scale, in the order in which they run.

    Args:
        spec: the recipe.
        scale: its name.
        seeds: of the replicates.
        copy: which copy of the data set it is; networks of another one are others.
    """
    size, data = spec.scale(scale), spec.data_at(scale)
    rows = spec.rows_at(scale)

    def jobs(networks: Any, seed: int) -> tuple[Job, ...]:
        return tuple(jobs_of(networks, seed=seed, scale=size, data=data, copy=copy))

    measurements = []
    for seed in seeds:
        for measure in spec.measures:
            for group in measure.groups or (measure.rows or tuple(rows),):
                targets = {label: jobs(rows[label], seed) for label in group if label in rows}
                for sources, attacks in _parts(measure) if targets else ():
                    few = any(attack.few_images for attack in attacks.values())
                    limits = [limit for limit in (size.images, size.cw_images if few else None) if limit is not None]
                    measurements.append(
                        Measurement(
                            measure=measure,
                            seed=seed,
                            rows=targets,
                            sources={label: jobs(measure.sources[label], seed) for label in sources},
                            attacks=attacks,
                            images=min(limits, default=None),
                            scale=size,
                            data=data,
                        )
                    )
    return measurements


def _parts(measure: Measure) -> Iterable[tuple[Sequence[str], Mapping[str, AttackSpec]]]:
    """(labels of sources, attacks) of each measurement: one source a time, and attacks on few images by themselves."""
    halves = [
        half
        for few in (False, True)
        if (half := {label: attack for label, attack in measure.attacks.items() if attack.few_images is few})
    ] or [{}]
    together = MEASURES[measure.protocol].joint or not measure.sources
    groups = [tuple(measure.sources)] if together else [(label,) for label in measure.sources]
    return [(sources, half) for sources in groups for half in halves]


def measure(
    measurement: Measurement,
    networks: TrainedNetworks,
    data: RecipeData,
    store: RunDirectory,
    *,
    pictures: Path,
    accelerator: Any = None,
    progress: bool = False,
) -> list[Result]:
    """Measure; what the store has of it is reused.

    Args:
        measurement: its networks are trained.
        networks: where they are.
        data: the images.
        store: where measurements and adversarial images are kept.
        pictures: folder for images to look at; of several processes the first writes them.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; all of them end with the same
            records. None: this process alone.
        progress: show progress bars.
    """
    protocol, scale = measurement.protocol, measurement.scale
    targets = {label: networks.open(jobs) for label, jobs in measurement.rows.items()}
    images, attacks = data.test(measurement.images), list(measurement.make_attacks().values())
    request = Request(
        targets=targets,
        sources={label: networks.open(jobs) for label, jobs in measurement.sources.items()},
        attacks=attacks,
        data=data.stylized(measurement.images) if protocol.data == "pair" else images,
        options=measurement.options,
        run={
            "training_seed": measurement.seed,
            "batch_size": scale.batch_size,
            "store": store,
            "accelerator": accelerator,
            "progress": progress,
        },
    )
    records = list(protocol.measure(request))
    if measurement.writes_pictures and Team.of(accelerator).leads:  # the store has the images of all processes
        write_pictures(measurement.measure, targets, attacks, images, store, pictures, scale, seed=measurement.seed)
    return records
