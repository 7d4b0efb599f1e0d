"""Whether ``defective recipe run --dry-run`` is quick and right: ``python -m recipes.bench_estimate.bench``.

Run it on an idle machine. Every recipe of CIFAR-10 is planned at scale small, which reads no image, with nothing known
of the machine and then with what the first estimate kept: on an idle machine, and beside a program that computes on all
cores. Then some networks are trained for an epoch, and what that took stands beside its estimate, once from steps that
were timed and once scaled from those of ResNet-18.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image

from dcn_plugin.evaluate import RunDirectory
from dcn_plugin.experiments.datasets import DATA, open_data
from dcn_plugin.experiments.network_store import TrainedNetworks
from dcn_plugin.experiments.networks import Job, jobs_of, read_network
from dcn_plugin.experiments.recipe import list_recipes, load_recipe, recipes_root
from dcn_plugin.experiments.scales import scale_for
from dcn_plugin.experiments.step_times import StepTimes
from recipes import benchmark

HERE = Path(__file__).parent
BUSY = "import torch\nx = torch.ones(1024, 1024)\nwhile True: torch.mm(x, x)"
TOLD = re.compile(r"expected time on this machine: about ([\d.]+) (\w+), between ([\d.]+) (\w+) and ([\d.]+) (\w+)")
KINDS = re.compile(r"(\d+) kinds? of network timed(?:, (\d+) scaled)?")
HOURS = {"s": 1 / 3600, "min": 1 / 60, "h": 1.0}
NETS = (("resnet18", "Standard"), ("resnet18", "0.3-Bottom"), ("vgg19", "Standard"), ("densenet121", "Standard"))


@dataclass(frozen=True)
class Options:
    """What is measured.

    Args:
        epochs: of the trainings.
        images: of each of their epochs.
        recipes: the first so many of CIFAR-10; 0: all.
        nets: the first so many networks are trained.
    """

    epochs: int = 3
    images: int = DATA["digits"].train_images
    recipes: int = 0
    nets: int = len(NETS)


QUICK = Options(epochs=1, images=64, recipes=1, nets=1)


def measure(options: Options, command: str) -> dict[str, Any]:
    """The record."""
    root = recipes_root()
    names = [name for name in list_recipes(root) if load_recipe(name, root).data_at("small") == "cifar10"]
    names = names[: options.recipes] if options.recipes else names
    return {
        **benchmark.head(options, command),
        "recipes": names,
        "dry_runs": dry_runs(names),
        "trainings": trainings(options),
    }


def dry_runs(names: list[str]) -> list[dict[str, Any]]:
    """Seconds and hours told of each dry run: with and without what an earlier one kept, idle and busy."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = layout(Path(folder) / "data")
        for machine, load in (("idle", contextlib.nullcontext), ("busy", busy)):
            kept = str(Path(folder) / machine)
            with load():
                for run in ("first", "second"):
                    rows.append({"machine": machine, "run": run, **dry_run(names, data, kept)})
    return rows


def layout(root: Path) -> Path:
    """A folder in the layout of CIFAR-10 with an image a class: a plan reads none of them."""
    for part in ("train", "test"):
        for number in range(10):
            path = root / part / f"class{number}" / "image.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(path)
    return root


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Another program computes on all cores."""
    program = subprocess.Popen([sys.executable, "-c", BUSY])
    time.sleep(5)  # until it does
    try:
        yield
    finally:
        program.kill()
        program.wait()


def dry_run(names: list[str], data: Path, kept: str) -> dict[str, Any]:
    """One dry run as its user sees it."""
    command = ["recipe", "run", *names, "--scale", "small", "--data", str(data), "--dry-run"]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dcn_plugin.cli", *command, "--out", str(data / "out")],
        env={**os.environ, "DCN_STEPS_CACHE": kept},
        check=True,
        capture_output=True,
        text=True,
    )
    elapsed = time.perf_counter() - start
    told, kinds = TOLD.search(done.stderr), KINDS.search(done.stderr)
    if told is None or kinds is None:
        raise SystemExit(done.stderr)
    likely, low, high = (float(told[place]) * HOURS[told[place + 1]] for place in (1, 3, 5))
    return {
        "seconds": round(elapsed, 1),
        "hours": [round(hours, 2) for hours in (low, likely, high)],
        "timed": int(kinds[1]),
        "scaled": int(kinds[2] or 0),
    }


def trainings(options: Options) -> list[dict[str, Any]]:
    """Seconds that trainings took, and what they were estimated at."""
    cpu, digits = torch.device("cpu"), open_data("digits", None)
    scale = scale_for("small", "cifar10", {"epochs": options.epochs, "train_images": options.images})
    jobs = [training(net, variant, scale) for net, variant in NETS[: options.nets]]
    images = options.epochs * min(options.images, DATA["digits"].train_images)
    with mock.patch.dict(os.environ, DCN_STEPS_CACHE="off"):
        timed, scaled = StepTimes(cpu), StepTimes(cpu)
        timed.measure([(job, images) for job in jobs], budget=float("inf"))
        scaled.measure([(jobs[0], images)])
    rows = []
    for job in jobs:
        with tempfile.TemporaryDirectory() as folder:
            store = RunDirectory(Path(folder) / "store")
            networks = TrainedNetworks(Path(folder) / "networks", digits, device=cpu, store=store)
            start = time.perf_counter()
            networks.train(job)
            elapsed = time.perf_counter() - start
        spans = {name: times.total([(job, images)]) for name, times in (("timed", timed), ("scaled", scaled))}
        rows.append(
            {
                "network": job.title,
                "multiply_adds": timed.work(job),
                "images": images,
                "seconds": round(elapsed, 2),
                **{name: [round(value, 2) for value in dataclasses.astuple(span)] for name, span in spans.items()},
            }
        )
    return rows


def training(net: str, variant: str, scale: Any) -> Job:
    (job,) = jobs_of([read_network(variant, net=net)], seed=0, scale=scale, data="digits")
    return job


def page(record: dict[str, Any]) -> str:
    """The record as a page."""
    machine, options = record["hardware"], record["options"]
    images = record["trainings"][0]["images"] // options["epochs"]
    lines = [
        "# Whether a recipe's estimate is quick and right",
        "",
        f"Made by `{record['command']}`; all figures are in `record.json`. Machine: {machine['processor']} "
        f"({machine['instructions']}), {machine['threads']} threads; torch {record['versions']['torch']}.",
        "",
        f"`defective recipe run ... --scale small --dry-run` of {len(record['recipes'])} recipes at once, the time of "
        "the whole process. The first finds nothing of this machine, the second what the first kept. On the busy one "
        "another program multiplies matrices on all cores; what is told is the time on an idle one.",
        "",
        "| machine | dry run | takes, s | tells, h | between, h | kinds timed | scaled |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["dry_runs"]:
        low, likely, high = row["hours"]
        lines.append(
            f"| {row['machine']} | {row['run']} | {row['seconds']:.1f} | {likely:.1f} | {low:.1f} .. {high:.1f} | "
            f"{row['timed']} | {row['scaled']} |"
        )
    lines += [
        "",
        f"Trainings at scale small, {options['epochs']} epoch(s) of {images} digits, loader, optimiser and "
        "files included, beside what was estimated: from timed steps of the same kind, and scaled by multiply-adds "
        "from those of ResNet-18.",
        "",
        "| network | million multiply-adds | took, s | timed, s | between | scaled, s | between |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in record["trainings"]:
        spans = [row["timed"], row["scaled"]]
        cells = " | ".join(f"{likely:.1f} | {low:.1f} .. {high:.1f}" for low, likely, high in spans)
        lines.append(f"| {row['network']} | {row['multiply_adds'] / 1e6:.0f} | {row['seconds']:.1f} | {cells} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    benchmark.main(
        HERE,
        __doc__,
        options=Options(),
        quick=QUICK,
        settable=("epochs", "images", "recipes", "nets"),
        measure=measure,
        page=page,
    )
