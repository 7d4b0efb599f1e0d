"""What masks cost: training step, inference, surgery, checkpoint size, import time.

Run it on an idle machine: ``.venv/bin/python recipes/bench_masks/bench.py``. It writes ``record.json``
and ``README.md`` beside itself. Each ratio comes from pairs that were timed one after the other in one
run, so that a change in the machine's speed falls on both sides.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.models import resnet18_cifar
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.environment import hardware, package_versions

HERE = Path(__file__).parent
BATCH = 64
SEED = 0


def naive(model: nn.Module) -> nn.Module:
    """The same masks the obvious way: a new tensor ``x * mask`` behind every norm."""
    slow = copy.deepcopy(model)
    for module in slow.modules():
        if isinstance(module, dcn.DefectMask2d):
            module.inplace = False
            module.mask = module.mask.contiguous()
    return slow


def train_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def inference(model: nn.Module, images: Tensor) -> Callable[[], None]:
    model.eval()

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return forward


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(calls: dict[str, Callable[[], None]], pairs: int) -> dict[str, dict[str, float]]:
    """Median seconds of each call, and the median over rounds of its ratio to the first."""
    for call in calls.values():
        call()
        call()
    rounds = []
    for i in range(pairs):
        order = list(calls) if i % 2 == 0 else list(calls)[::-1]  # no side always runs first
        rounds.append({name: seconds(calls[name]) for name in order})
    base = next(iter(calls))
    return {
        name: {
            "median_s": statistics.median(r[name] for r in rounds),
            "ratio": statistics.median(r[name] / r[base] for r in rounds),
            "ratio_quartiles": statistics.quantiles([r[name] / r[base] for r in rounds], n=4),
        }
        for name in calls
    }


def model_costs(pairs: int) -> dict[str, Any]:
    torch.manual_seed(SEED)
    plain = resnet18_cifar().to(memory_format=torch.channels_last)
    masked = dcn.defectify(plain, p=0.3, input_size=(3, 32, 32))
    images = torch.rand(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.arange(BATCH) % 10
    nets = {"plain": plain, "defective": masked, "naive x * mask": naive(masked)}
    return {
        "training_step": compare({k: train_step(copy.deepcopy(m), images, labels) for k, m in nets.items()}, pairs),
        "inference": compare({k: inference(m, images) for k, m in nets.items()}, 2 * pairs),
    }


def defectify_seconds(repeats: int) -> dict[str, float]:
    model = timm.create_model("resnet50")
    times = [seconds(lambda: dcn.defectify(model)) for _ in range(repeats + 1)]
    return {"first_s": times[0], "median_s": statistics.median(times[1:])}


def checkpoint_bytes() -> dict[str, float]:
    """Size of a defective checkpoint over that of the plain weights in the same format."""
    import tempfile

    from safetensors.torch import save_file

    model = timm.create_model("resnet50")
    with tempfile.TemporaryDirectory() as folder:
        plain, masked = Path(folder) / "plain.safetensors", Path(folder) / "masked.safetensors"
        save_file(model.state_dict(), plain)
        dcn.save_checkpoint(dcn.defectify(model), masked)
        return {
            "plain_bytes": plain.stat().st_size,
            "defective_bytes": masked.stat().st_size,
            "ratio": masked.stat().st_size / plain.stat().st_size,
        }


def import_seconds(pairs: int) -> dict[str, float]:
    """What ``import dcn_plugin`` adds to ``import timm``, in fresh processes."""

    def run(code: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))

    run("import timm, dcn_plugin")
    found = [(run("import timm"), run("import timm, dcn_plugin")) for _ in range(pairs)]
    return {
        "timm_s": statistics.median(a for a, _ in found),
        "added_s": statistics.median(b - a for a, b in found),
    }


LIMITS = {
    "training step, defective / plain": (1.05, 1.02),
    "inference, defective / plain": (1.08, 1.04),
    "defectify resnet50 at 224, seconds": (1.5, None),
    "checkpoint, defective / plain": (1.02, None),
    "import dcn_plugin over import timm, seconds": (0.3, None),
}


def figures(record: dict[str, Any]) -> dict[str, float]:
    """The measured value of every line of LIMITS."""
    return dict(
        zip(
            LIMITS,
            (
                record["training_step"]["defective"]["ratio"],
                record["inference"]["defective"]["ratio"],
                record["defectify_resnet50"]["median_s"],
                record["checkpoint"]["ratio"],
                record["import"]["added_s"],
            ),
            strict=True,
        )
    )


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = [
        "# What masks cost",
        "",
        f"Made by `{record['command']}` (seed {record['seed']}); all figures are in `record.json`. The network is the "
        f"CIFAR ResNet-18 at full width, batch {BATCH}, channels_last, float32, p = 0.3 at the bottom.",
        "",
        f"Machine: {record['hardware']['processor']}, {record['hardware']['threads']} threads; "
        f"torch {record['versions']['torch']}, timm {record['versions']['timm']}.",
        "",
        "| measured | value | at most | aim |",
        "|---|---|---|---|",
    ]
    for (name, (limit, aim)), value in zip(LIMITS.items(), figures(record).values(), strict=True):
        lines.append(f"| {name} | {value:.3f} | {limit} | {aim if aim is not None else ''} |")
    lines += [
        "",
        "The obvious way, a new tensor `x * mask` a layer with the mask in the default memory format, takes "
        f"{record['training_step']['naive x * mask']['ratio']:.3f} in training and "
        f"{record['inference']['naive x * mask']['ratio']:.3f} in inference. The mask here overwrites the norm's "
        "output, which nobody else reads, and lies in memory as the activations do.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=25, help="timed pairs of training steps (default 25)")
    args = parser.parse_args()
    record = {
        "schema": 1,
        "command": "python recipes/bench_masks/bench.py",
        "seed": SEED,
        "versions": package_versions(),
        "hardware": hardware(),
        **model_costs(args.pairs),
        "defectify_resnet50": defectify_seconds(5),
        "checkpoint": checkpoint_bytes(),
        "import": import_seconds(7),
    }
    write_atomic(HERE / "record.json", json.dumps(record, indent=1) + "\n")
    write_atomic(HERE / "README.md", markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
