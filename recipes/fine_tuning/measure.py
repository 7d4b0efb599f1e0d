"""From a trained network to a defective one, against one trained defective: ``python -m recipes.fine_tuning.measure``.

For every seed a standard ResNet-18 is trained, and 0.3-Bottom from scratch; then the standard network becomes
0.3-Bottom with the same masks: as it is, with recalibrated norms, by fine-tuning under all masks at once, and by
fine-tuning with gradual defects, for as many epochs as the training from scratch had and for a third of them. All are
measured on clean images, under FGSM and PGD from a network of another seed and from the standard network itself, and
under noise.

Networks lie in ``--work`` (shared with ``defective recipe run``), and so do finished measurements: a run that was
stopped goes on with the same command. ``record.json`` and ``README.md`` are written beside this script, or into
``--out``. ``--only SEED`` measures one seed and keeps those that the record has: a machine that is lent for a few hours
is enough, and the next may be another one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD, Attack
from dcn_plugin.evaluate import Result, ResultFile, RunDirectory, gaussian, hardware, package_versions, transfer
from dcn_plugin.experiments.datasets import RecipeData, open_data
from dcn_plugin.experiments.finished_seeds import now
from dcn_plugin.experiments.network_store import TrainedNetworks, build
from dcn_plugin.experiments.networks import SOURCE, Job, read_network
from dcn_plugin.experiments.scales import SCALES, Scale, scale_for
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.training import GradualDefects, TrainConfig, load_network, load_weights, train
from dcn_plugin.training.precision import autocast
from recipes.fine_tuning.page import page

HERE = Path(__file__).parent
NET, VARIANT = "resnet18", "0.3-Bottom"
STANDARD, SCRATCH, THIRD = "standard", "from scratch", "from scratch, a third"
LEVELS = (16, 32, 64)  # of noise, in grey levels
RECALIBRATED_ON = 2000  # training images


@dataclass(frozen=True)
class Arm:
    """One way from the standard network to the defective one.

    Args:
        share: of the epochs of the training from scratch; 0: no fine-tuning.
        recalibrated: norms are recalibrated, before any fine-tuning.
        gradual: fields of TrainConfig.
        main: whether every seed has it, or the first alone.
    """

    share: float
    recalibrated: bool = False
    gradual: tuple[tuple[str, Any], ...] = ()
    main: bool = True


LINEAR = (("gradual", "linear"),)
ARMS = {
    "masks alone": Arm(0),
    "recalibrated": Arm(0, recalibrated=True),
    "sudden": Arm(1),
    "gradual": Arm(1, gradual=LINEAR),
    "sudden, a third": Arm(1 / 3),
    "gradual, a third": Arm(1 / 3, gradual=LINEAR),
    "recalibrated and sudden, a third": Arm(1 / 3, recalibrated=True, main=False),
    "gradual by cosine, a third": Arm(1 / 3, gradual=(("gradual", "cosine"),), main=False),
    "gradual from the bottom up, a third": Arm(1 / 3, gradual=(*LINEAR, ("gradual_order", "bottom-up")), main=False),
    "gradual over all steps, a third": Arm(1 / 3, gradual=(*LINEAR, ("gradual_share", 1.0)), main=False),
}


class Measurement:
    """The networks of all seeds, and what they do.

    Args:
        scale: of the recipes.
        data: the images.
        work: folder of networks and finished measurements.
        lr: highest learning rate of a fine-tuning.
        device: where it computes.
        progress: show progress bars.
    """

    def __init__(
        self, scale: Scale, data: RecipeData, work: Path, lr: float, device: torch.device, *, progress: bool
    ) -> None:
        self.scale, self.data, self.work, self.lr, self.device, self.progress = scale, data, work, lr, device, progress
        self.store = RunDirectory(work / "store")
        self.networks = TrainedNetworks(work / "networks", data, device=device, store=self.store, progress=progress)

    def results(self, seeds: Iterable[int]) -> Iterator[Result]:
        """Train what is missing, and measure every network of every seed."""
        test = self.data.test(self.scale.images)
        for seed in seeds:
            standard, scratch = self.job("Standard", seed), self.job(VARIANT, seed)
            third = dataclasses.replace(scratch, scale=self.lasting(self.epochs(1 / 3)))
            other = self.job("Standard", seed, run=SOURCE)
            for job in self.networks.missing([other, standard, scratch, third]):
                self.networks.train(job)
            trained = {STANDARD: standard, SCRATCH: scratch, THIRD: third}
            targets = {name: self.networks.open([job]) for name, job in trained.items()}
            for name, arm in ARMS.items():
                if arm.main or seed == 0:
                    targets[name] = self.tuned(name, arm, standard, scratch)
            sources = {"other": self.networks.open([other]), "itself": targets[STANDARD]}
            run: Any = {"training_seed": seed, "store": self.store, "progress": self.progress}
            batch = {"batch_size": self.scale.batch_size}
            yield from transfer(sources, targets, self.attacks(), test, rounding="8bit", **run, **batch)
            levels = [level / 255 for level in LEVELS]
            yield from gaussian(targets, test, levels, noise="clipped", **run, **batch)

    def job(self, variant: str, seed: int, **run: str) -> Job:
        return Job(read_network(variant, net=NET, **run), 0, seed, self.scale, self.data.name, self.data.title)

    def epochs(self, share: float) -> int:
        return max(1, round(share * self.scale.training.epochs))

    def lasting(self, epochs: int) -> Scale:
        return dataclasses.replace(self.scale, training=self.scale.training.lasting(epochs))

    def attacks(self) -> list[Attack]:
        """FGSM and PGD of the paper's appendix, at 16 grey levels; weaker where the scale says so."""
        steps = min(20, self.scale.max_steps or 20)
        return [PGD(16 / 255, steps=1, step_size=16 / 255), PGD(16 / 255, steps=steps, step_size=20 / 255 / steps)]

    def overhead(self, steps: int = 200) -> dict[str, float]:
        """Median seconds of a step of the schedule, and of the training step that it stands in front of."""
        training = self.scale.training
        layout = torch.channels_last if training.channels_last else torch.contiguous_format
        net = build(self.job(VARIANT, 0)).to(self.device, memory_format=layout).train()
        images, labels = next(iter(self.data.train(training.batch_size).batches(training.batch_size)))
        images, labels = images.to(self.device, memory_format=layout), labels.to(self.device)
        gradual = GradualDefects(net, steps)

        def step() -> None:
            with autocast(training.amp, self.device):
                loss = F.cross_entropy(net(images), labels)
            loss.backward()
            net.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        training_step = median_seconds(step, 5)
        return {"step_s": median_seconds(gradual.step, steps), "training_step_s": training_step}

    def config(self, arm: Arm, job: Job) -> TrainConfig:
        """How an arm is fine-tuned: as from scratch, but for its epochs, learning rate and masks."""
        training = self.lasting(self.epochs(arm.share)).training
        return dataclasses.replace(training, lr=self.lr, seed=job.order_seed, **dict(arm.gradual))

    def tuned(self, name: str, arm: Arm, standard: Job, masked: Job) -> nn.Module:
        """The network of an arm, in eval mode."""
        net = build(masked).to(self.device)
        folder = (
            self.work
            / "fine_tuning"
            / self.data.name
            / self.scale.name
            / f"seed{masked.seed}"
            / name.replace(",", "").replace(" ", "-")
        )
        last = folder / "last.safetensors"
        load_weights(net, self.networks.path(standard) / "last.safetensors", masks=False)
        images = self.data.train(self.scale.train_images)
        if arm.recalibrated and not last.is_file():
            dcn.recalibrate(net, torch.cat([batch for batch, _ in images.batches(RECALIBRATED_ON)])[:RECALIBRATED_ON])
        if arm.share:
            config = self.config(arm, masked)
            about = {"start": standard.name, "recalibrated": str(arm.recalibrated)}
            train(
                net, images, config, out=folder, about=about, progress=self.progress, name=f"seed {masked.seed}, {name}"
            )
            load_network(net, last)
        return net.eval()


def median_seconds(call: Callable[[], object], times: int) -> float:
    """Of a call, to the microsecond."""
    elapsed = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        elapsed.append(time.perf_counter() - start)
    return round(statistics.median(elapsed), 6)


def settings(measurement: Measurement) -> dict[str, Any]:
    """All that the seeds of a record have in common, as JSON values."""
    scale = measurement.scale
    common = {
        "name": "fine_tuning",
        "net": NET,
        "variant": VARIANT,
        "data": measurement.data.title,
        "scale": scale.to_json(),
        "lr": measurement.lr,
        "recalibrated_on": RECALIBRATED_ON,
        "epochs": {
            **{STANDARD: scale.training.epochs, SCRATCH: scale.training.epochs, THIRD: measurement.epochs(1 / 3)},
            **{name: measurement.epochs(arm.share) if arm.share else 0 for name, arm in ARMS.items()},
        },
        "arms": {name: {**dataclasses.asdict(arm), "gradual": dict(arm.gradual)} for name, arm in ARMS.items()},
    }
    return json.loads(json.dumps(common))  # type: ignore[no-any-return]


def make(measurement: Measurement, seeds: Sequence[int], command: str) -> ResultFile:
    """Everything of some seeds, and the settings that it came from."""
    start = time.perf_counter()
    results = tuple(measurement.results(seeds))
    spec = {
        **settings(measurement),
        "seeds": list(seeds),
        "schedule": measurement.overhead(),
        "versions": package_versions(),
        "hardware": hardware(measurement.device),
    }
    run = {"created": now(), "seconds": round(time.perf_counter() - start, 1), "command": command}
    return ResultFile(json.loads(json.dumps(spec)), results, run)


def differing(measurement: Measurement, record: ResultFile) -> list[str]:
    """Names of the settings that a record was made by and this measurement has otherwise."""
    return [name for name, value in settings(measurement).items() if record.spec.get(name) != value]


def joined(record: ResultFile, earlier: ResultFile) -> ResultFile:
    """The record with the seeds of an earlier one, of the same settings, that it does not have."""
    kept = [result for result in earlier.results if result.seed not in record.spec["seeds"]]
    results = tuple(sorted([*kept, *record.results], key=lambda result: result.seed))
    seeds = sorted({*record.spec["seeds"], *earlier.spec["seeds"]})
    return dataclasses.replace(record, spec={**record.spec, "seeds": seeds}, results=results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small", help="default: small")
    parser.add_argument("--data", type=Path, help="root of CIFAR-10; the digits of scale smoke come along")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seeds", type=int, default=3, help="measure so many seeds, from 0 on (default: 3)")
    which.add_argument("--only", type=int, metavar="SEED", help="measure this seed and add it to the record")
    parser.add_argument("--lr", type=float, default=0.1, help="highest learning rate of a fine-tuning (default: 0.1)")
    parser.add_argument("--work", type=Path, default=Path("recipe-runs"), help="default: recipe-runs")
    parser.add_argument("--out", type=Path, help="folder for record.json and README.md (default: beside the script)")
    parser.add_argument("--device", default="cpu", help="default: cpu")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")
    args = parser.parse_args()
    if args.scale == "smoke" and args.out is None:
        parser.error("--scale smoke needs --out: its figures must not replace the record")
    scale = scale_for(args.scale, "cifar10")
    data = open_data(scale.data or "cifar10", args.data)
    # Not the folders that were given: they belong to the machine.
    chosen = f"--seeds {args.seeds}" if args.only is None else f"--only {args.only}"
    command = f"python -m recipes.fine_tuning.measure --scale {args.scale} {chosen} --lr {args.lr:g}"
    progress = not args.no_progress
    measurement = Measurement(scale, data, args.work, args.lr, torch.device(args.device), progress=progress)
    folder = args.out or HERE
    folder.mkdir(parents=True, exist_ok=True)
    earlier = None
    if args.only is not None and (folder / "record.json").is_file():
        earlier = ResultFile.read(folder / "record.json")
        if names := differing(measurement, earlier):  # before hours are spent
            parser.error(
                f"the record in {folder} was made with another {', '.join(names)}; name another folder with --out"
            )
    record = make(measurement, range(args.seeds) if args.only is None else [args.only], command)
    if earlier is not None:
        record = joined(record, earlier)
    record.write(folder / "record.json")
    write_atomic(folder / "README.md", page(record))
    print(page(record), file=sys.stdout)


if __name__ == "__main__":
    main()
