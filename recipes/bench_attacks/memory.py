"""Peak memory of a transfer matrix over the size of its data set: python -m recipes.bench_attacks.memory

Images are made as they are asked for, so that only what the protocol keeps can grow. Each size runs in a process of
its own. It writes ``memory.json`` beside itself.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from dcn_plugin.attacks import PGD
from dcn_plugin.evaluate import RunDirectory, transfer
from dcn_plugin.models import cifar_resnet
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.environment import hardware, package_versions
from dcn_plugin.training import isolated_rng

RECORD = Path(__file__).parent / "memory.json"
SIZES = (256, 1024, 4096)
SHAPE = (3, 64, 64)
BATCH = 64


class Endless:
    """So many images of noise, made batch by batch."""

    name, num_classes, shape, content_hash = "noise", 10, SHAPE, "noise"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for first in range(0, self.count, batch_size):
            generator = torch.Generator().manual_seed(first)
            count = min(batch_size, self.count - first)
            yield torch.rand(count, *SHAPE, generator=generator), torch.randint(10, (count,), generator=generator)


def peak(count: int) -> float:
    """MiB that this process has taken at most, after a matrix of two sources and two targets on ``count`` images."""
    models = {}
    for seed in range(2):
        with isolated_rng(seed):
            models[f"net {seed}"] = cifar_resnet((1, 1, 1, 1), width=4).eval()
    with tempfile.TemporaryDirectory() as folder:
        attack = PGD(8 / 255, steps=1)
        list(
            transfer(
                models, models, [attack], Endless(count), training_seed=0, batch_size=BATCH, store=RunDirectory(folder)
            )
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(peak(int(sys.argv[1])))
        return
    command = [sys.executable, "-m", "recipes.bench_attacks.memory"]
    found = {
        str(count): float(subprocess.run([*command, str(count)], check=True, capture_output=True, text=True).stdout)
        for count in SIZES
    }
    record = {
        "schema": 1,
        "command": "python -m recipes.bench_attacks.memory",
        "what": f"peak MiB of a 2 x 2 transfer matrix, FGSM, images {SHAPE}, batch {BATCH}, kept in a run directory",
        "image_mib": {str(count): count * 3 * 64 * 64 * 4 / 2**20 for count in SIZES},
        "peak_mib": found,
        "versions": package_versions(),
        "hardware": hardware(),
    }
    write_atomic(RECORD, json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["peak_mib"]))


if __name__ == "__main__":
    main()
