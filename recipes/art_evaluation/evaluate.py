"""Standard and defective networks under ART's own attacks, as an ART user would run them.

``python recipes/art_evaluation/evaluate.py`` trains four small networks on scikit-learn's digits, runs the attacks,
and writes ``record.json`` and ``README.md`` beside itself; minutes on one core. ``--quick`` is a smoke test that
writes nothing but to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import (
    AutoProjectedGradientDescent,
    BoundaryAttack,
    DeepFool,
    FastGradientMethod,
    HopSkipJump,
    ProjectedGradientDescent,
    SquareAttack,
)
from torch import nn

from dcn_plugin.adapters.art import DefectiveClassifier, DefectiveTransformer
from dcn_plugin.data import load_digits
from dcn_plugin.models.resnet import cifar_resnet
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.environment import hardware, package_versions
from dcn_plugin.support.statistics import wilson

HERE = Path(__file__).parent
SIZE = 16
CLOSEST = ("DeepFool", "HopSkipJump", "Boundary")  # look for the closest adversarial image; the others fill a ball


@dataclass(frozen=True)
class Settings:
    """What the numbers depend on, but for the machine and the versions."""

    seed: int = 0
    width: int = 16
    layers: tuple[int, int, int, int] = (2, 2, 1, 1)
    p: float = 0.1
    epochs: int = 8
    eps: float = 0.2  # of the L-inf attacks, in units of [0, 1] images
    steps: int = 20
    images: int = 100  # for FGM, PGD, AutoPGD and Square
    images_deepfool: int = 40
    images_walking: int = 10  # for HopSkipJump and Boundary, which take one image at a time
    queries: int = 200  # iterations of Square
    hops: int = 10
    walk: int = 40  # iterations of Boundary
    threads: int = 1  # with one, the numbers do not depend on the number of cores


QUICK = Settings(
    width=8,
    layers=(1, 1, 1, 1),
    epochs=1,
    steps=2,
    images=8,
    images_deepfool=4,
    images_walking=2,
    queries=5,
    hops=1,
    walk=2,
)


def classifier(s: Settings, x: np.ndarray, y: np.ndarray, *, seed: int, p: float | None = None) -> DefectiveClassifier:
    """Train a network with ART's fit; with ``p``, one whose masks keep that share of the bottom neurons."""
    torch.manual_seed(seed)
    net = cifar_resnet(s.layers, in_chans=1, width=s.width)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-3)
    made = DefectiveClassifier(
        net, nn.CrossEntropyLoss(), (1, SIZE, SIZE), 10, optimizer, clip_values=(0.0, 1.0), device_type="cpu"
    )
    if p is not None:
        made = DefectiveTransformer(made, "bottom", p, seed=seed)()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(made.optimizer, s.epochs)
    made.fit(x, y, batch_size=64, nb_epochs=s.epochs, scheduler=schedule)
    return made


def attacks(s: Settings) -> dict[str, tuple[Callable[[Any], Any], int]]:
    """Name -> (attack on a classifier, number of images)."""
    ball = {"eps": s.eps, "eps_step": 1.25 * s.eps / s.steps}
    few = s.images_walking
    return {
        "FGM": (lambda c: FastGradientMethod(c, eps=s.eps), s.images),
        "PGD": (lambda c: ProjectedGradientDescent(c, **ball, max_iter=s.steps, verbose=False), s.images),
        "AutoPGD": (
            lambda c: AutoProjectedGradientDescent(
                c, **ball, max_iter=s.steps, nb_random_init=1, loss_type="difference_logits_ratio", verbose=False
            ),
            s.images,
        ),
        "Square": (lambda c: SquareAttack(c, eps=s.eps, max_iter=s.queries, p_init=0.3, verbose=False), s.images),
        "DeepFool": (lambda c: DeepFool(c, max_iter=s.steps, verbose=False), s.images_deepfool),
        "HopSkipJump": (lambda c: HopSkipJump(c, max_iter=s.hops, max_eval=500, verbose=False), few),
        "Boundary": (lambda c: BoundaryAttack(c, targeted=False, max_iter=s.walk, verbose=False), few),
    }


def right(c: DefectiveClassifier, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return c.predict(x).argmax(axis=1) == y


def row(threat: str, attack: str, target: str, clean: np.ndarray, after: np.ndarray, **more: Any) -> dict[str, Any]:
    """One result; every share in it can be worked out from its counts."""
    low, high = wilson(int(after.sum()), len(after))
    return {
        "threat": threat,
        "attack": attack,
        "target": target,
        "n_total": len(clean),
        "n_clean_correct": int(clean.sum()),
        "n_correct": int(after.sum()),
        "accuracy_interval": [round(low, 4), round(high, 4)],
        **more,
    }


def whitebox(s: Settings, nets: dict[str, DefectiveClassifier], x: np.ndarray, y: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for name, (make, count) in attacks(s).items():
        for target, victim in nets.items():
            np.random.seed(s.seed)  # noqa: NPY002  (ART draws from NumPy's global generator)
            start = time.perf_counter()
            made = make(victim).generate(x[:count], y[:count])
            seconds = round(time.perf_counter() - start, 2)
            clean = right(victim, x[:count], y[:count])
            # An image that was wrong counts as lost, also where an untargeted attack has turned it into a right one.
            after = clean & right(victim, made, y[:count])
            distance = np.square(made - x[:count]).reshape(count, -1).mean(axis=1)[clean & ~after]
            median = float(np.median(distance)) if len(distance) else None
            rows.append(
                row(
                    "direct",
                    name,
                    target,
                    clean,
                    after,
                    n_fooled=len(distance),
                    median_distance=median,
                    seconds=seconds,
                )
            )
    return rows


def transfer(
    s: Settings,
    threat: str,
    source: DefectiveClassifier,
    nets: dict[str, DefectiveClassifier],
    x: np.ndarray,
    y: np.ndarray,
) -> list[dict[str, Any]]:
    """PGD on a network of the attacker's own, shown to the networks that it has not seen."""
    attack = ProjectedGradientDescent(
        source, eps=s.eps, eps_step=1.25 * s.eps / s.steps, max_iter=s.steps, verbose=False
    )
    made = attack.generate(x, y)
    fooled = right(source, x, y) & ~right(source, made, y)
    rows = []
    for target, victim in nets.items():
        clean, after = right(victim, x, y), right(victim, made, y)
        counted = fooled & clean
        counts = {"n_source_fooled": fooled, "n_counted": counted, "n_defended": counted & after}
        rows.append(row(threat, "PGD", target, clean, after, **{k: int(v.sum()) for k, v in counts.items()}))
    return rows


def run(s: Settings) -> dict[str, Any]:
    """Train, attack, and say how it was done."""
    torch.set_num_threads(s.threads)
    splits = load_digits(size=SIZE)
    x, y = splits.train.images.numpy(), splits.train.labels.numpy()
    start, start_cpu = time.perf_counter(), time.process_time()
    sources = {
        "transfer": classifier(s, x, y, seed=s.seed + 1),
        "adaptive": classifier(s, x, y, seed=s.seed + 1, p=s.p),
    }
    nets = {
        "standard": classifier(s, x, y, seed=s.seed),
        f"defective p={s.p:g}": classifier(s, x, y, seed=s.seed, p=s.p),
    }
    x, y = splits.test.images.numpy(), splits.test.labels.numpy()
    return {
        "schema": 1,
        "command": "python recipes/art_evaluation/evaluate.py",
        "seed": s.seed,
        "settings": asdict(s),
        "data": splits.test.name,
        "versions": {**package_versions(), "art": metadata.version("adversarial-robustness-toolbox")},
        "hardware": hardware(),
        "results": [
            *(row("none", "clean", name, right(net, x, y), right(net, x, y)) for name, net in nets.items()),
            *(row for threat, source in sources.items() for row in transfer(s, threat, source, nets, x, y)),
            *whitebox(s, nets, x, y),
        ],
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - start_cpu, 1),
    }


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} ({part}/{whole})" if whole else "–"


def defended(r: dict[str, Any]) -> str:
    return share(r.get("n_defended", 0), r.get("n_counted", 0))


def table(results: list[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(show(r) for show in columns.values()) + " |" for r in results),
    ]


def closer(rows: list[dict[str, Any]]) -> str:
    """Which network the attacks that look for the closest image come closer to, as part of a sentence."""
    found: dict[str, dict[str, float | None]] = {}
    for r in rows:
        found.setdefault(r["attack"], {})[r["target"].split()[0]] = r["median_distance"]
    pairs = [(found[name]["defective"], found[name]["standard"]) for name in CLOSEST]
    smaller = sum(ours < standard for ours, standard in pairs if ours is not None and standard is not None)
    return f"they are smaller for the defective network under {smaller} of {len(pairs)} attacks"


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    s, versions, machine = record["settings"], record["versions"], record["hardware"]
    accuracy = {
        "attack": lambda r: r["attack"],
        "network": lambda r: r["target"],
        "accuracy": lambda r: share(r["n_correct"], r["n_total"]),
    }
    rows = {
        threat: [r for r in record["results"] if r["threat"] == threat]
        for threat in ("none", "transfer", "adaptive", "direct")
    }
    return "\n".join(
        [
            "# Defective networks under ART's attacks",
            "",
            f"Made by `{record['command']}` (seed {record['seed']}, {record['cpu_seconds']:.0f} CPU seconds); all "
            "counts are in `record.json`. A script as a user of the Adversarial Robustness Toolbox would write it: "
            "`DefectiveTransformer` puts the masks in, ART's `fit` trains, ART's attacks attack.",
            "",
            f"Networks: the same ResNet of width {s['width']} on scikit-learn's digits, {SIZE} x {SIZE}, standard and "
            f"with p = {s['p']:g} of the bottom neurons kept. L-inf attacks have eps = {s['eps']:g} of [0, 1] images "
            f"and at most {s['steps']} steps. Width, blocks and weight decay are those of `defective demo`, which were "
            "chosen by hand to show an effect. One training run each: no figure here says how much another would "
            "differ.",
            "",
            f"Machine: {machine['processor']}, threads used: {machine['threads']}; ART {versions['art']}, "
            f"torch {versions['torch']}, numpy {versions['numpy']}.",
            "",
            "## Transfer: the attacker does not have the network",
            "",
            "PGD on a third network, a standard one from another training run. The defence rate counts, as in the "
            "paper, the images on which the source was fooled and the target is right when clean.",
            "",
            *table(
                [*rows["none"], *rows["transfer"]],
                {**accuracy, "defence rate": defended},
            ),
            "",
            "## Adaptive transfer: the attacker knows the method, and not the masks",
            "",
            "The same attack on a fourth network: a defective one with weights and masks of its own. It is the source "
            "that a defective target has to stand up to, once it is known that its masks are there.",
            "",
            *table(rows["adaptive"], {**accuracy, "defence rate": defended}),
            "",
            "## Direct: the attacker has the network, or may ask it",
            "",
            "This is not what masks are for: who has the network with its masks, or may query it at will, breaks both, "
            "and gradients flow through the masks. The accuracy counts images that are right when clean and stay so: "
            "an untargeted attack may turn a wrong one into a right one, and that is not robustness. Distances are the "
            "median of ||delta||^2 / (C H W) over the images that were right and no longer are, under attacks that "
            "look for the closest image; "
            f"{closer(rows['direct'])}. HopSkipJump and Boundary run on few images with small budgets: their rows show "
            "that they work, not how robust a network is.",
            "",
            *table(
                rows["direct"],
                {
                    **accuracy,
                    "distance": lambda r: (
                        "–"
                        if r["attack"] not in CLOSEST or r["median_distance"] is None
                        else f"{r['median_distance']:.5f}"
                    ),
                },
            ),
            "",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test: one epoch, few images")
    parser.add_argument("--out", type=Path, help="folder to write to (default: this one, and none with --quick)")
    args = parser.parse_args(argv)
    record = run(QUICK if args.quick else Settings())
    out = args.out or (None if args.quick else HERE)
    if out is not None:
        write_atomic(out / "record.json", json.dumps(record, indent=1) + "\n")
        write_atomic(out / "README.md", markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
