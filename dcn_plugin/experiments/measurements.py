"""The cells of a recipe: the pieces that are measured one after the other, each kept as soon as it is there."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcn_plugin.attacks import Attack
from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import (
    Result,
    RunDirectory,
    Team,
    amplitude,
    gaussian,
    minimal_distance,
    shuffle,
    stylized,
    tapm,
    transfer,
    whitebox,
)
from dcn_plugin.evaluate.cache_keys import Key, digest, surroundings
from dcn_plugin.experiments.attack_names import GREY, AttackSpec
from dcn_plugin.experiments.datasets import DATA, RecipeData
from dcn_plugin.experiments.network_store import TrainedNetworks
from dcn_plugin.experiments.networks import Job, jobs_of
from dcn_plugin.experiments.pictures import write_pictures
from dcn_plugin.experiments.recipe import Measure, RecipeSpec
from dcn_plugin.experiments.scales import Scale
from dcn_plugin.support.atomic_file import write_atomic

__all__ = ["Cell", "CellFolder", "Entry", "cells_of", "columns_of", "measure"]

_log = logging.getLogger(__name__)

_SWAPPED = "amplitude swap"
_PICTURES = ("images", "user-study")
_WHITEBOX = ("whitebox", *_PICTURES)


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
class Cell:
    """One piece of a recipe.

    Args:
        measure: the protocol and its settings.
        seed: of the replicate.
        rows: label -> the networks whose mean logits count.
        sources: likewise, the attacked ones.
        attacks: label -> attack.
        images: so many test images; None = all.
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
        return self.measure.protocol in _PICTURES

    def key(self, stamp: str, device: torch.device) -> Key:
        """What its records depend on, without opening a network: their keys stand for them."""
        one = self.measure
        settings = {k: v for k, v in self.scale.to_json().items() if k not in ("training", "name")}
        return {
            "protocol": one.protocol,
            "settings": [one.columns, one.figure, one.levels, one.ks, one.rounding, one.confidence, one.count],
            "seed": self.seed,
            "rows": {label: [digest(job.key) for job in jobs] for label, jobs in self.rows.items()},
            "sources": {label: [digest(job.key) for job in jobs] for label, jobs in self.sources.items()},
            "attacks": {label: attack.text for label, attack in self.attacks.items()},
            "images": self.images,
            "scale": settings,
            "data": stamp,
            **surroundings(device),
        }


def cells_of(spec: RecipeSpec, scale: str, seeds: Sequence[int], *, copy: str = "") -> list[Cell]:
    """All cells of a recipe at a scale, in the order in which they are measured.

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

    cells = []
    for seed in seeds:
        for one in spec.measures:
            groups = one.groups or (one.rows or tuple(rows),)
            for group in groups:
                targets = {label: jobs(rows[label], seed) for label in group if label in rows}
                for sources, attacks in _parts(one) if targets else ():
                    few = any(attack.few_images for attack in attacks.values())
                    limits = [limit for limit in (size.images, size.cw_images if few else None) if limit is not None]
                    cells.append(
                        Cell(
                            measure=one,
                            seed=seed,
                            rows=targets,
                            sources={label: jobs(one.sources[label], seed) for label in sources},
                            attacks=attacks,
                            images=min(limits, default=None),
                            scale=size,
                            data=data,
                        )
                    )
    return cells


def _parts(one: Measure) -> Iterable[tuple[Sequence[str], Mapping[str, AttackSpec]]]:
    """(labels of sources, attacks) a cell: one a source, and attacks on few images by themselves."""
    halves = [
        half
        for few in (False, True)
        if (half := {label: attack for label, attack in one.attacks.items() if attack.few_images is few})
    ] or [{}]
    whole = [tuple(one.sources)] if one.protocol == "tapm" or not one.sources else [(label,) for label in one.sources]
    return [(sources, half) for sources in whole for half in halves]


class CellFolder:
    """The finished cells of an output folder, shared by all recipes.

    Args:
        path: of the folder; made when the first cell is finished.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, key: Key) -> list[Entry] | None:
        """The numbers of a cell, or None. A damaged file counts as not there."""
        path = self.path / f"{digest(key)}.json"
        try:
            raw = json.loads(path.read_bytes())
            return [
                Entry(one["row"], one["column"], one["figure"], Result.from_dict(one["result"]))
                for one in raw["entries"]
            ]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecordError) as error:
            _log.warning("%s is measured again: it cannot be read (%s)", path, error)
            return None

    def write(self, key: Key, entries: Sequence[Entry]) -> None:
        """Keep the numbers of a finished cell."""
        content = {
            "key": key,
            "entries": [
                {"row": one.row, "column": one.column, "figure": one.figure, "result": one.result.to_dict()}
                for one in entries
            ],
        }
        write_atomic(self.path / f"{digest(key)}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def measure(
    cell: Cell,
    networks: TrainedNetworks,
    data: RecipeData,
    store: RunDirectory,
    *,
    pictures: Path,
    accelerator: Any = None,
    progress: bool = False,
) -> list[Entry]:
    """Measure a cell; what the store has of it is reused.

    Args:
        cell: its networks are trained.
        networks: where they are.
        data: the images.
        store: where measurements and adversarial images are kept.
        pictures: folder for images to look at; of several processes the first writes them.
        accelerator: an :class:`accelerate.Accelerator` whose processes share the images; all of them end with the same
            numbers. None: this process alone.
        progress: show progress bars.
    """
    columns, rows = columns_of(cell), tuple(cell.rows)
    found = list(_records(cell, networks, data, store, pictures=pictures, accelerator=accelerator, progress=progress))
    labels = [(row, column) for column in columns for row in rows]
    if cell.measure.protocol in _WHITEBOX:  # its records come network by network
        labels = [(row, column) for row in rows for column in columns]
    figure = cell.measure.figure
    return [Entry(row, column, figure, record) for (row, column), record in zip(labels, found, strict=True)]


def columns_of(cell: Cell) -> list[str]:
    """The columns of the table that a cell fills, in the order of its records."""
    one = cell.measure
    if one.protocol == "gaussian":
        return [_column(one, level=f"{level:g}") for level in one.levels]
    if one.protocol == "shuffle":
        return [_column(one, k=k) for k in one.ks]
    if one.protocol == "stylized":
        return [_column(one) if cell.data == "imagenet" else _SWAPPED]
    if one.protocol == "tapm":
        return [_column(one)]
    return [_column(one, source=source, attack=attack) for source in cell.sources or ("",) for attack in _attacks(cell)]


def _records(
    cell: Cell,
    networks: TrainedNetworks,
    data: RecipeData,
    store: RunDirectory,
    *,
    pictures: Path,
    accelerator: Any,
    progress: bool,
) -> Iterable[Result]:
    one, scale = cell.measure, cell.scale
    targets = {label: networks.open(jobs) for label, jobs in cell.rows.items()}
    sources = {label: networks.open(jobs) for label, jobs in cell.sources.items()}
    images, attacks = data.test(cell.images), list(_attacks(cell).values())
    common: dict[str, Any] = {
        "seed": cell.seed,
        "batch_size": scale.batch_size,
        "store": store,
        "accelerator": accelerator,
        "progress": progress,
    }
    if one.protocol == "transfer":
        yield from transfer(sources, targets, attacks, images, rounding=one.rounding, **common)
    elif one.protocol == "tapm":
        yield from tapm(sources, targets, attacks, images, rounding=one.rounding, **common)
    elif one.protocol == "distance":
        for attack in attacks:
            yield from minimal_distance(targets, attack, images, count=scale.count, **common)
    elif one.protocol == "gaussian":
        yield from gaussian(targets, images, [level * GREY for level in one.levels], noise="clipped", **common)
    elif one.protocol == "shuffle":
        # Networks of a smoke run are never sure.
        confidence = one.confidence if scale.name != "smoke" else 0.0
        yield from shuffle(targets, images, one.ks, confidence=confidence, **common)
    elif one.protocol == "stylized":
        pair = data.stylized(cell.images)
        # Where there are no stylised images, the amplitude swap asks the same question.
        yield from amplitude(targets, images, **common) if pair is None else stylized(targets, *pair, **common)
    else:
        yield from whitebox(targets, attacks, images, rounding=one.rounding, **common)
        if cell.writes_pictures and Team.of(accelerator).leads:  # the store has the images of all processes
            write_pictures(one, targets, attacks, images, store, pictures, scale, seed=cell.seed)


def _attacks(cell: Cell) -> dict[str, Attack]:
    """Label -> attack; of a set of attacks each has its name behind the label."""
    made: dict[str, Attack] = {}
    for label, spec in cell.attacks.items():
        found = spec.make(cell.scale, channels=DATA[cell.data].shape[0])
        made |= {label if len(found) == 1 else f"{label} {attack.name}": attack for attack in found}
    return made


def _column(one: Measure, **names: object) -> str:
    return one.columns.format_map({"source": "", "attack": "", "level": "", "k": "", **names})
