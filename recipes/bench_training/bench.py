"""What the training loop costs over the model's own forward, backward and optimiser step.

Run it on an idle machine: ``.venv/bin/python recipes/bench_training/bench.py``. It writes ``record.json`` and
``README.md`` beside itself; ``--quick`` only prints. Each ratio comes from bare steps and an epoch of the loop that
were timed one after the other in one run, so that a change in the machine's speed falls on both sides.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcn_plugin.data import ImageSet
from dcn_plugin.models.resnet import cifar_resnet
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.environment import hardware, package_versions
from dcn_plugin.training import Batch, HeldImages, TrainConfig, isolated_rng, train

HERE = Path(__file__).parent
BATCH = 128
SEED = 0
LIMITS = {"cpu": 1.03, "cuda": 1.08}
VARIANTS: dict[str, dict[str, Any]] = {
    "loop": {},
    "loop, without augmentation": {"shift": 0, "flip": False},
    "loop, averaging the weights": {"ema_decay": 0.999},
}


def synthetic(count: int) -> ImageSet:
    """Random 8-bit images in CIFAR-10's size."""
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(pixels.float().div_(255), torch.arange(count) % 10, 10, "synthetic")


class Bare:
    """Steps on one batch that is there already: forward, backward, optimiser."""

    def __init__(self, model: nn.Module, data: ImageSet, config: TrainConfig, device: torch.device) -> None:
        self.model = model.to(device).train()
        self.images, self.labels = data.images[:BATCH].to(device), data.labels[:BATCH].to(device)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=1e-3,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )

    def steps(self, count: int) -> None:
        for _ in range(count):
            loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class Paired(HeldImages):
    """Images whose epochs time themselves, from the first batch to the end of the last step, next to bare steps."""

    def __init__(self, data: ImageSet, bare: Bare, config: TrainConfig) -> None:
        super().__init__(data, shift=config.shift, flip=config.flip)
        self.bare = bare
        self.rounds: list[tuple[float, float]] = []

    def epoch(self, batch_size: int, *, device: torch.device, **rest: Any) -> Iterator[Batch]:
        count = len(self) // batch_size
        bare_first = len(self.rounds) % 2 == 0  # no side always runs first
        bare = self._bare(count, device) if bare_first else 0.0
        start = _now(device)
        yield from super().epoch(batch_size, device=device, **rest)
        loop = _now(device) - start
        self.rounds.append((bare or self._bare(count, device), loop))

    def _bare(self, count: int, device: torch.device) -> float:
        start = _now(device)
        self.bare.steps(count)
        return _now(device) - start


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(rounds: int, steps: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Median over rounds of the loop's time over that of as many bare steps, for every variant."""
    data, found = synthetic(steps * BATCH), {}
    with isolated_rng(SEED):
        model = cifar_resnet(width=16)
    for name, change in VARIANTS.items():
        # Two rounds to warm up.
        options: dict[str, Any] = {"shift": 4, "flip": True, **change}
        config = TrainConfig(epochs=rounds + 2, batch_size=BATCH, lr=1e-3, **options)
        paired = Paired(data, Bare(copy.deepcopy(model), data, config, device), config)
        train(copy.deepcopy(model).to(device), paired, config)
        timed = paired.rounds[2:]
        ratios = [loop / bare for bare, loop in timed]
        found[name] = {
            "bare_step_s": statistics.median(bare for bare, _ in timed) / steps,
            "loop_step_s": statistics.median(loop for _, loop in timed) / steps,
            "ratio": statistics.median(ratios),
            "ratio_quartiles": statistics.quantiles(ratios, n=4),
        }
    return found


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    kind, measured = record["device"], record["measured"]
    lines = [
        "# What the training loop costs",
        "",
        f"Made by `{record['command']}` (seed {record['seed']}); all figures are in `record.json`. The network is the "
        f"CIFAR ResNet-18 at width 16, batch {BATCH}, float32, on {kind}. A bare step is forward, backward, "
        "optimiser on a batch that is there already; the loop also shuffles, crops with padding, flips, sets the lr "
        f"and keeps the record. Median over {record['rounds']} rounds of {record['steps']} steps.",
        "",
        f"Machine: {record['hardware']['processor']}, {record['hardware']['threads']} threads; "
        f"torch {record['versions']['torch']}, timm {record['versions']['timm']}.",
        "",
        "| measured | bare step, ms | loop's step, ms | ratio | quartiles | at most |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in measured.items():
        low, _, high = row["ratio_quartiles"]
        limit = LIMITS[kind] if name == "loop" else ""
        lines.append(
            f"| {name} | {1e3 * row['bare_step_s']:.1f} | {1e3 * row['loop_step_s']:.1f} | {row['ratio']:.3f} | "
            f"{low:.3f} .. {high:.3f} | {limit} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=80, help="timed rounds of each variant (default 80)")
    parser.add_argument("--steps", type=int, default=8, help="steps a round (default 8)")
    parser.add_argument("--device", default="cpu", choices=LIMITS)
    parser.add_argument("--quick", action="store_true", help="five rounds of four steps; print, write nothing")
    args = parser.parse_args()
    rounds, steps = (5, 4) if args.quick else (args.rounds, args.steps)
    device = torch.device(args.device)
    record = {
        "schema": 1,
        "command": f"python recipes/bench_training/bench.py --device {args.device}",
        "seed": SEED,
        "device": args.device,
        "rounds": rounds,
        "steps": steps,
        "versions": package_versions(),
        "hardware": hardware(device),
        "measured": measure(rounds, steps, device),
    }
    if not args.quick:
        write_atomic(HERE / "record.json", json.dumps(record, indent=1) + "\n")
        write_atomic(HERE / "README.md", markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
