"""How close Boundary and HopSkipJump come at equal queries, beside Foolbox's and ART's.

Run it with ``.venv/bin/python -m recipes.bench_attacks.distances``, about an hour on two cores, one for each network.
Distances do not depend on the machine's speed: other programs may run beside it. It writes ``distances.json`` and
``README.md`` beside itself. ``--quick`` is a smoke test whose figures mean nothing; it writes only where ``--out``
says.

Every tool starts from the same adversarial images (uniform noise, bisected towards the clean image), and a query is
an image that the model is asked about.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcn_plugin.attacks import BoundaryAttack, DecisionAttack, HopSkipJump
from recipes import benchmark
from recipes.bench_attacks.nets import SHAPES, Net, build
from recipes.bench_attacks.page import RIVAL_NAMES, markdown
from recipes.bench_attacks.rivals import RIVALS, Distances

HERE = Path(__file__).parent
OURS: dict[str, type[BoundaryAttack] | type[HopSkipJump]] = {
    "BoundaryAttack": BoundaryAttack,
    "HopSkipJump": HopSkipJump,
}


@dataclass(frozen=True)
class Options:
    """What the figures depend on, but for the versions."""

    seed: int = 0
    tiny_width: int = 8
    tiny_images: int = 48
    tiny_art_images: int = 32
    cifar_width: int = 16
    cifar_images: int = 24
    cifar_art_images: int = 4
    epochs: int = 4
    budgets: tuple[int, int, int] = (1000, 5000, 25_000)  # HopSkipJump: the first two


QUICK = Options(
    tiny_images=4,
    tiny_art_images=2,
    cifar_width=8,
    cifar_images=3,
    cifar_art_images=1,
    epochs=2,
    budgets=(60, 120, 240),
)


def median(values: Tensor) -> float:
    """The mean of the two middle values where there are two, which ``Tensor.median`` is not."""
    return float(values.quantile(0.5))


def our_distances(attack: DecisionAttack, net: Net) -> Tensor:
    """What our attack returns, infinity where it fails."""
    made = attack(net.model, net.data.images, net.data.labels, starting_points=net.starts)
    return made.distance.nan_to_num(nan=float("inf"))


def compare(attack: str, net: Net, art_images: int, budgets: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Median distances of every tool, and ours over each rival's on the images that both attacked."""
    seconds: dict[str, float] = {}
    found: dict[str, Distances] = {}
    counts = {"ours": len(net.data), "foolbox": len(net.data), "art": art_images}
    for tool, count in counts.items():
        begin = time.perf_counter()
        if tool == "ours":
            found[tool] = {
                budget: our_distances(OURS[attack](max_queries=budget, seed=seed), net) for budget in budgets
            }
        else:
            images, labels = net.data.images[:count], net.data.labels[:count]
            run = RIVALS[attack][tool]
            found[tool] = run(net.model, images, labels, net.starts[:count], budgets, seed=seed)
        seconds[tool] = time.perf_counter() - begin
        print(f"{net.about()['network']}: {attack} of {tool}, {seconds[tool]:.0f} s", file=sys.stderr, flush=True)
    each = {tool: {str(k): values.tolist() for k, values in distances.items()} for tool, distances in found.items()}
    result: dict[str, Any] = {"images": counts, "seconds": seconds, "queries": {}, "image_by_image": each}
    for budget in budgets:
        result["queries"][str(budget)] = {
            "median": {tool: median(distances[budget]) for tool, distances in found.items()},
            "ours_over": over_rivals(found["ours"][budget], {rival: found[rival][budget] for rival in RIVAL_NAMES}),
        }
    if attack == "BoundaryAttack":
        last = budgets[-1]
        fine = our_distances(BoundaryAttack(max_queries=last, seed=seed, coarse=1), net)
        result["without_coarse"] = {
            "queries": last,
            "median": median(fine),
            "ours_over": over_rivals(fine, {rival: found[rival][last] for rival in RIVAL_NAMES}),
        }
    return result


def over_rivals(ours: Tensor, rivals: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Our distances over each rival's, on the images that it attacked: the first ones."""
    return {
        rival: {
            "of_medians": median(ours[: len(theirs)]) / median(theirs),
            "of_geometric_means": float((ours[: len(theirs)] / theirs).log().mean().exp()),
        }
        for rival, theirs in rivals.items()
    }


def measure(options: Options, kind: str) -> dict[str, Any]:
    """Train one network and attack it, on one thread."""
    torch.set_num_threads(1)
    width, images, art_images = (getattr(options, f"{kind}_{what}") for what in ("width", "images", "art_images"))
    net = build(kind, width=width, images=images, epochs=options.epochs, seed=options.seed)
    return {
        **net.about(),
        "BoundaryAttack": compare("BoundaryAttack", net, art_images, options.budgets, options.seed),
        "HopSkipJump": compare("HopSkipJump", net, art_images, options.budgets[:2], options.seed),
    }


def run(options: Options, command: str) -> dict[str, Any]:
    """Measure everything, each network in a process of its own."""
    begin = time.perf_counter()
    with ProcessPoolExecutor(len(SHAPES), mp_context=multiprocessing.get_context("spawn")) as pool:
        nets = dict(zip(SHAPES, pool.map(partial(measure, options), SHAPES), strict=True))
    head = benchmark.head(options, command, packages=("foolbox", "adversarial-robustness-toolbox"))
    head["hardware"]["threads"] = 1  # of each process
    return {**head, "nets": nets, "seconds": time.perf_counter() - begin}


def main() -> None:
    benchmark.main(
        HERE,
        __doc__,
        options=Options(),
        quick=QUICK,
        settable=("tiny_images", "tiny_art_images", "cifar_images", "cifar_art_images", "seed"),
        measure=run,
        page=markdown,
        script="distances",
        beside="record",
    )


if __name__ == "__main__":
    main()
