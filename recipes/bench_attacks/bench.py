"""What Boundary, HopSkipJump and a transfer matrix cost over the model calls they make, and Boundary beside Foolbox's.

Run it on an idle machine: ``.venv/bin/python -m recipes.bench_attacks.bench``, a few minutes on two cores. It writes
``record.json`` and ``README.md`` beside itself. ``--quick`` is a smoke test whose figures mean nothing; it writes only
where ``--out`` says. How close the attacks come: ``recipes.bench_attacks.distances``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcn_plugin.attacks import PGD, BoundaryAttack
from dcn_plugin.data import ImageSet
from dcn_plugin.models.resnet import cifar_resnet
from dcn_plugin.training import isolated_rng
from recipes import benchmark
from recipes.bench_attacks.costs import cost_of_attack, cost_of_transfer, in_turn
from recipes.bench_attacks.distances import OURS
from recipes.bench_attacks.nets import Net, build
from recipes.bench_attacks.page import markdown
from recipes.bench_attacks.rivals import RIVALS

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Options:
    """What the figures depend on, but for the machine and the versions."""

    seed: int = 0
    tiny_width: int = 8
    tiny_images: int = 32
    cifar_width: int = 16
    cifar_images: int = 8
    epochs: int = 4
    timed_queries: int = 1000
    pairs: int = 5
    transfer_images: int = 96


QUICK = Options(tiny_images=4, cifar_width=8, cifar_images=3, epochs=2, timed_queries=60, pairs=1, transfer_images=16)


def time_against_foolbox(net: Net, options: Options) -> dict[str, Any]:
    """Seconds of both Boundary attacks for the same number of queries."""
    marks = (options.timed_queries,)
    images, labels = net.data.images, net.data.labels
    ours = BoundaryAttack(max_queries=options.timed_queries, seed=options.seed)
    foolbox = RIVALS["BoundaryAttack"]["foolbox"]
    return in_turn(
        lambda: ours(net.model, images, labels, starting_points=net.starts),
        lambda: foolbox(net.model, images, labels, net.starts, marks, seed=options.seed),
        options.pairs,
    )


def measure(net: Net, options: Options) -> dict[str, Any]:
    """The times of one network."""
    costs = {
        name: cost_of_attack(
            kind(max_queries=options.timed_queries, seed=options.seed), net.model, net.data, pairs=options.pairs
        )
        for name, kind in OURS.items()
    }
    return {
        **net.about(),
        "images": len(net.data),
        "over_bare_forwards": costs,
        "time_over_foolbox": time_against_foolbox(net, options),
    }


def measure_transfer(net: Net, options: Options) -> dict[str, Any]:
    """A matrix of two sources, three targets and two attacks on three untrained networks like this one."""
    channels, _, _ = net.data.shape
    models = {}
    for seed in range(3):
        with isolated_rng(seed):
            models[f"net {seed}"] = cifar_resnet(in_chans=channels, width=net.width).eval()
    images = net.data.images.repeat(-(-options.transfer_images // len(net.data)), 1, 1, 1)[: options.transfer_images]
    labels = net.data.labels.repeat(-(-options.transfer_images // len(net.data)))[: options.transfer_images]
    data = ImageSet(images, labels, net.data.num_classes, f"{net.data.name}, repeated")
    attacks = [PGD(8 / 255, steps=1), PGD(16 / 255, steps=5)]
    sources = {name: models[name] for name in ("net 0", "net 1")}
    found = cost_of_transfer(sources, models, attacks, data, seed=options.seed, pairs=options.pairs)
    return {"sources": len(sources), "targets": len(models), "attacks": [repr(a) for a in attacks], **found}


def run(options: Options, command: str) -> dict[str, Any]:
    """Measure everything."""
    begin = time.perf_counter()
    shared: Mapping[str, Any] = {"epochs": options.epochs, "seed": options.seed}
    nets = {
        "tiny": build("tiny", width=options.tiny_width, images=options.tiny_images, **shared),
        "cifar": build("cifar", width=options.cifar_width, images=options.cifar_images, **shared),
    }
    return {
        **benchmark.head(options, command, schema=2, packages=("foolbox",)),
        "transfer": measure_transfer(nets["cifar"], options),
        "nets": {name: measure(net, options) for name, net in nets.items()},
        "seconds": time.perf_counter() - begin,
    }


def main() -> None:
    benchmark.main(
        HERE,
        __doc__,
        options=Options(),
        quick=QUICK,
        settable=("tiny_images", "cifar_width", "cifar_images", "pairs", "seed"),
        measure=run,
        page=markdown,
        beside="distances",
    )


if __name__ == "__main__":
    main()
