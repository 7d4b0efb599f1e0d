"""Running a recipe: train what is missing, measure what is missing, write the record and the table.

::

    OUT/networks/<network>-<digest>/  trained networks, shared by all recipes
    OUT/store/                        adversarial images and finished measurements, shared likewise
    OUT/<recipe>/<scale>/record.json  the record, which ``defective report`` reads
    OUT/<recipe>/<scale>/table.md     the table

Every file is whole or not there: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcn_plugin.errors import CheckpointError, SpecError
from dcn_plugin.evaluate import ResultFile, RunDirectory, Team, hardware, package_versions
from dcn_plugin.experiments.comparison import Number, caveats, compare, to_markdown
from dcn_plugin.experiments.datasets import RecipeData, open_data
from dcn_plugin.experiments.finished_seeds import now
from dcn_plugin.experiments.measurements import Entry, Measurement, measure, measurements_of
from dcn_plugin.experiments.network_store import TrainedNetworks, shortened
from dcn_plugin.experiments.networks import Job
from dcn_plugin.experiments.recipe import RecipeSpec
from dcn_plugin.experiments.time_estimate import Estimate, Remaining, estimate
from dcn_plugin.experiments.verdict import verdict_of
from dcn_plugin.support.atomic_file import check_output, write_atomic
from dcn_plugin.training import Engine

__all__ = ["Outcome", "Plan", "plan_recipe", "run_recipe"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a run needs and what of it is there.

    Args:
        spec: the recipe.
        scale: name of the scale.
        seeds: of the replicates.
        out: the output folder.
        data: the images.
        device: where the networks compute.
        accelerator: see :func:`plan_recipe`.
        cells: all measurements.
        finished: place of a measurement -> its numbers, of the finished ones.
        train: networks that have to be trained, in that order.
    """

    spec: RecipeSpec
    scale: str
    seeds: tuple[int, ...]
    out: Path
    data: RecipeData
    device: torch.device
    accelerator: Any
    cells: tuple[Measurement, ...]
    finished: dict[int, list[Entry]]
    train: tuple[Job, ...]
    engine: Engine = "dense"

    @property
    def folder(self) -> Path:
        """Where record, table and pictures go."""
        return self.out / self.spec.name / self.scale

    @property
    def missing(self) -> list[Measurement]:
        """Measurements that have to run."""
        return [cell for place, cell in enumerate(self.cells) if place not in self.finished]

    def expect(self) -> Estimate:
        """How long that takes one process here: steps of the largest networks are timed."""
        return estimate(self.train, self.missing, self.device)

    def __str__(self) -> str:
        jobs = {job.name for cell in self.cells for job in cell.jobs}
        return (
            f"{self.spec.name} ({self.spec.reproduces}) at scale {self.scale} on {self.data.title}: "
            f"{len(self.train)} of {len(jobs)} networks to train, "
            f"{len(self.missing)} of {len(self.cells)} cells to measure"
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run made.

    Args:
        numbers: ours beside the paper's.
        markdown: the table.
        files: record, table, and pictures if there are any.
        trained: networks that this run trained.
        measured: measurements that this run made.
    """

    numbers: tuple[Number, ...]
    markdown: str
    files: tuple[Path, ...]
    trained: int
    measured: int


def plan_recipe(
    spec: RecipeSpec,
    scale: str,
    *,
    data: str | os.PathLike[str] | RecipeData | None = None,
    out: str | os.PathLike[str] = "recipe-runs",
    seeds: Sequence[int] = (0,),
    device: torch.device | None = None,
    accelerator: Any = None,
    engine: Engine = "dense",
) -> Plan:
    """Find out what a run needs; no network and no image is opened.

    Args:
        spec: the recipe.
        scale: "smoke", "small", "medium" or "full".
        data: root of its data set; not needed for "smoke". Or the data set, opened: recipes that run one after the
            other then read its images once.
        out: the output folder; other recipes may have written into it.
        seeds: one replicate each.
        device: where the networks compute; by default the accelerator's, or CUDA where there is one.
        accelerator: an :class:`accelerate.Accelerator` whose processes plan, train and measure together. Each of them
            calls this function and then :func:`run_recipe` with the same arguments, on folders that all of them see;
            the first one looks for what is finished, and writes. None: this process alone.

        engine: what computes the training steps of defective networks, see :class:`dcn_plugin.training.TrainConfig`.

    Raises:
        SpecError: an unknown scale, no usable seeds, or an accelerator that computes in another precision than the
            recipe says.
        DataError: the data are not there, or ``out`` is a file.
        OutputError: files cannot be written into it.
    """
    chosen = tuple(seeds)
    if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
        raise SpecError("The seeds are not usable.", chosen, "one or more different ints >= 0")
    folder = Path(out)
    check_output(folder)
    images = data if isinstance(data, RecipeData) else open_data(spec.data_at(scale), data)
    if images.name != spec.data_at(scale):
        raise SpecError("The data are not the recipe's.", images.name, spec.data_at(scale))
    default = _device(accelerator)
    where = device or default
    cells = tuple(measurements_of(spec, scale, chosen, copy=images.title))
    store = RunDirectory(folder / "store")
    networks = TrainedNetworks(folder / "networks", images, device=where, store=store)

    def look() -> tuple[dict[int, list[Entry]], tuple[Job, ...]]:
        finished: dict[int, list[Entry]] = {}
        for place, cell in enumerate(cells):
            records = store.read_unit(cell.key(images.stamp, where))
            if records is not None and (not cell.writes_pictures or any(_pictures(folder, spec, scale).glob("*"))):
                finished[place] = cell.entries(records)
        needed = [job for place, cell in enumerate(cells) if place not in finished for job in cell.jobs]
        return finished, tuple(networks.missing(needed))

    # For all processes: a file that comes between two looks would send them on different ways.
    finished, train = Team.of(accelerator).first(look)
    return Plan(spec, scale, chosen, folder, images, where, accelerator, cells, finished, train, engine)


def run_recipe(
    plan: Plan, *, command: str = "", progress: bool = False, tell: Callable[[str], None] | None = None
) -> Outcome:
    """Train and measure what is missing, then write record and table.

    Args:
        plan: see :func:`plan_recipe`.
        command: how the run was started, for the record.
        progress: show progress bars on stderr, or lines where that is no terminal.
        tell: gets a line before each network and each measurement, from the first process; None: nobody does.

    Returns:
        The same on all processes.

    Raises:
        DcnError: as training and measuring do; what is finished is kept.
        OSError: no room on the disk; likewise.
    """
    team, accelerator = Team.of(plan.accelerator), plan.accelerator
    say = tell if tell is not None and team.leads else lambda line: None
    started = time.perf_counter()
    store = RunDirectory(plan.out / "store")
    networks = TrainedNetworks(
        plan.out / "networks",
        plan.data,
        device=plan.device,
        store=store,
        accelerator=accelerator,
        progress=progress,
        engine=plan.engine,
    )
    finished, missing = dict(plan.finished), plan.missing
    left = Remaining(plan.train, missing, plan.device)
    for number, job in enumerate(plan.train, 1):
        say(f"[{number}/{len(plan.train)}] training {job.title}, seed {job.seed}{left}")
        begun = time.perf_counter()
        networks.train(job)
        left.finished("training", time.perf_counter() - begun)
    for number, cell in enumerate(missing, 1):
        say(f"[{number}/{len(missing)}] measuring {cell.title}{left}")
        begun = time.perf_counter()
        pictures = _pictures(plan.out, plan.spec, plan.scale)
        records = measure(
            cell, networks, plan.data, store, pictures=pictures, accelerator=accelerator, progress=progress
        )
        if team.leads:
            store.write_unit(cell.key(plan.data.stamp, plan.device), records)
        finished[plan.cells.index(cell)] = cell.entries(records)
        left.finished("measuring", time.perf_counter() - begun)
    entries = [entry for place in range(len(plan.cells)) for entry in finished[place]]
    scale = plan.spec.scale(plan.scale)
    numbers = compare(plan.spec, scale, entries)
    seconds = round(time.perf_counter() - started, 2)
    markdown, files = team.first(lambda: _write(plan, numbers, entries, networks, command=command, seconds=seconds))
    return Outcome(tuple(numbers), markdown, files, len(plan.train), len(missing))


def _write(
    plan: Plan,
    numbers: Sequence[Number],
    entries: Sequence[Entry],
    networks: TrainedNetworks,
    *,
    command: str,
    seconds: float,
) -> tuple[str, tuple[Path, ...]]:
    """The table, and the files."""
    spec, scale = plan.spec, plan.spec.scale(plan.scale)
    record, table = plan.folder / "record.json", plan.folder / "table.md"
    trained = _networks(plan, networks)
    precisions = dict.fromkeys(network["precision"] for network in trained if network["precision"])
    facts = {
        "Data": plan.data.title,
        "Training": ", ".join([shortened(scale.training), *precisions]),
        "Seeds": ", ".join(map(str, plan.seeds)),
        "Versions": ", ".join(f"{name} {version}" for name, version in package_versions().items()),
        "Machine": ", ".join(f"{name}: {value}" for name, value in hardware(plan.device).items()),
    }
    content: dict[str, Any] = {
        "recipe": spec.name,
        "reproduces": spec.reproduces,
        "data": plan.data.title,
        "scale": scale.to_json(),
        "caveats": caveats(spec, scale),
        "seeds": list(plan.seeds),
        "versions": package_versions(),
        "hardware": hardware(plan.device),
        "networks": trained,
        "numbers": [number.to_json() for number in numbers],
        "toml": spec.raw,
    }
    run = {
        "finished": now(),
        "seconds": seconds,
        "networks_trained": len(plan.train),
        "cells_measured": len(plan.missing),
        "command": command,
    }
    # One record may be a number of several columns.
    unique = {json.dumps(entry.result.to_dict(), sort_keys=True): entry.result for entry in entries}
    ResultFile(content, tuple(unique.values()), run).write(record)
    verdict = verdict_of(spec, numbers, [entry.result for entry in entries])
    markdown = to_markdown(spec, scale, numbers, verdict=verdict.sentence, facts=facts)
    write_atomic(table, markdown)
    pictures = _pictures(plan.out, spec, plan.scale)
    return markdown, (record, table, *sorted(pictures.glob("*")))


def _networks(plan: Plan, networks: TrainedNetworks) -> list[dict[str, Any]]:
    """Every network with its training, in the order of the measurements; without it where its folder was deleted."""
    networks_used: dict[str, dict[str, Any]] = {}
    for job in (job for cell in plan.cells for job in cell.jobs):
        if job.name in networks_used:
            continue
        entry: dict[str, Any] = {"title": job.title, "seed": job.seed, "folder": job.name, "key": job.key}
        try:
            history = networks.history(job)
            last = history.epochs[-1]
            entry |= {
                "loss": last.loss,
                "train_accuracy": last.train_accuracy,
                "precision": history.precision,
                **({"engine": history.engine} if history.engine else {}),
                "seconds": round(sum(epoch.seconds for epoch in history.epochs), 1),
            }
        except (OSError, ValueError, KeyError, TypeError, IndexError, CheckpointError):
            entry |= {"loss": None, "train_accuracy": None, "precision": None, "seconds": None}
        networks_used[job.name] = entry
    return list(networks_used.values())


def _pictures(out: Path, spec: RecipeSpec, scale: str) -> Path:
    return out / spec.name / scale / "pictures"


def _device(accelerator: Any) -> torch.device:
    precision = getattr(accelerator, "mixed_precision", "no")
    if precision != "no":
        raise SpecError(
            "This Accelerator's precision is not the recipe's.",
            precision,
            "'no': the scale says whether networks are trained in bfloat16",
            "launch without --mixed_precision",
        )
    device: torch.device | None = getattr(accelerator, "device", None)
    return device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
