"""The networks that come with the package, made from nothing: ``python -m recipes.pretrained.make``.

It trains the source, the standard and the defective network of ``defective demo`` with seed 0, stores them with
float16 weights, and measures what was stored: on clean test images, under one transferred PGD attack, and under one
level of Gaussian noise. Networks and cards go to ``dcn_plugin/pretrained/weights``, ``record.json`` and ``README.md``
beside this script; ``--out DIR`` puts all of them elsewhere. About a minute on one core.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dcn_plugin.pretrained
from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet, Splits, load_digits
from dcn_plugin.evaluate import (
    AdversarialSet,
    Result,
    ResultFile,
    correct,
    gaussian,
    hardware,
    logits_of,
    measure_targets,
    package_versions,
)
from dcn_plugin.experiments.demo_networks import SHIPPED, SHIPPED_KEEP, SHIPPED_SEED, SOURCE, train_network, training_of
from dcn_plugin.experiments.demo_spec import DemoSpec
from dcn_plugin.experiments.finished_seeds import fixed_threads, now
from dcn_plugin.models import cifar_resnet
from dcn_plugin.pretrained import PretrainedCard, load_half, save_half
from dcn_plugin.pretrained.cache import sha256_of
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.surgery import defect_spec, is_defective

HERE = Path(__file__).parent
WEIGHTS = Path(dcn_plugin.pretrained.__file__).parent / "weights"
SPEC = DemoSpec(keep=SHIPPED_KEEP)
EPS, SIGMA = 0.2, 0.3
ROLES = {
    SOURCE: "the attacker's, who cannot see the others (same architecture, another training run)",
    "standard": "without masks, to compare with",
    "defective p=0.3": "with masks in the bottom blocks that keep 3 of 10 neurons (same initial weights and batches as "
    "the standard one)",
}
HALF = "float16 kernels and matrices, float32 vectors, masks as packed bits"


def make(spec: DemoSpec, weights: Path, command: str) -> ResultFile:
    """Train, store, measure.

    Args:
        spec: settings of the demonstration.
        weights: folder for networks and cards.
        command: this script's, for cards and record.
    """
    start = time.perf_counter()
    with fixed_threads(spec.threads):
        splits = load_digits(size=spec.size)
        trained = {name: train_network(spec, SHIPPED_SEED, name, splits) for name in SHIPPED}
        stored = {
            SHIPPED[name]: store(spec, name, net, splits, weights, command).eval() for name, net in trained.items()
        }
        results = [
            *(rounding(SHIPPED[name], net, stored[SHIPPED[name]], splits.test) for name, net in trained.items()),
            *measure(stored, splits.test, spec.steps),
        ]
    settings = {
        **spec.to_json([SHIPPED_SEED], shipped={name: card(weights, name).sha256 for name in SHIPPED.values()}),
        "name": "pretrained",
        "eps": [EPS],
        "sigmas": [SIGMA],
        "bytes": {name: (weights / card(weights, name).file).stat().st_size for name in SHIPPED.values()},
    }
    run = {"created": now(), "seconds": round(time.perf_counter() - start, 1), "command": command}
    return ResultFile(settings, tuple(results), run)


def store(spec: DemoSpec, name: str, net: nn.Module, splits: Splits, weights: Path, command: str) -> nn.Module:
    """Write a network and its card; what was written, read again."""
    shipped, test = SHIPPED[name], splits.test
    path = weights / f"{shipped}.safetensors"
    save_half(net, path, metadata={"name": shipped})
    model_args = {
        "layers": list(spec.layers),
        "num_classes": test.num_classes,
        "in_chans": test.shape[0],
        "width": spec.width,
    }
    with torch.random.fork_rng(devices=[]):
        read = load_half(path, cifar_resnet(**model_args))
    PretrainedCard(
        name=shipped,
        summary=f"Small ResNet on scikit-learn's handwritten digits, a network of `defective demo`: {ROLES[name]}.",
        architecture="cifar_resnet",
        model_args=model_args,
        input_size=test.shape,
        num_classes=test.num_classes,
        defects=defect_spec(net) if is_defective(net) else None,
        data=splits.train.name,
        data_hash=splits.train.content_hash,
        training=training_of(spec, SHIPPED_SEED, name),
        seed=SHIPPED_SEED,
        test_data=test.name,
        test_data_hash=test.content_hash,
        n_test=len(test),
        n_correct=int(correct(read, test.images, test.labels).sum()),
        file=path.name,
        sha256=sha256_of(path),
        precision=HALF,
        license="Apache-2.0",
        command=command,
        versions=package_versions(),
        hardware=hardware(),
    ).write(weights / f"{shipped}.json")
    return read


def card(weights: Path, name: str) -> PretrainedCard:
    return PretrainedCard.read(weights / f"{name}.json")


def rounding(name: str, trained: nn.Module, stored: nn.Module, test: ImageSet) -> Result:
    """What storing as float16 changes, on clean images.

    The counted images are those that the float32 network has right; defended, those of them that the stored one still
    has right.
    """
    before, after = logits_of(trained, test.images), logits_of(stored, test.images)
    right, still = before.argmax(1) == test.labels, after.argmax(1) == test.labels
    return Result(
        protocol="float16",
        target=name,
        data=test.name,
        data_hash=test.content_hash,
        seed=SHIPPED_SEED,
        n_total=len(test),
        n_clean_correct=int(right.sum()),
        n_counted=int(right.sum()),
        n_defended=int((right & still).sum()),
        n_correct=int(still.sum()),
        figures={
            "n_predictions_changed": int((before.argmax(1) != after.argmax(1)).sum()),
            "largest_logit_change": round(float((before - after).abs().max()), 6),
            "largest_logit": round(float(before.abs().max()), 6),
        },
    )


def measure(stored: Mapping[str, nn.Module], test: ImageSet, steps: int) -> list[Result]:
    """One PGD transfer and one level of Gaussian noise, on the stored networks."""
    source = SHIPPED[SOURCE]
    targets = {name: net for name, net in stored.items() if name != source}
    made = AdversarialSet(source, stored[source], PGD.paper(EPS, steps=steps), test)
    return [
        *measure_targets(made, targets, training_seed=SHIPPED_SEED),
        *gaussian(targets, test, [SIGMA], training_seed=SHIPPED_SEED),
    ]


def page(record: ResultFile) -> str:
    """The record as a page; its table is shown on docs/howto/pretrained.md."""
    spec, first = record.spec, record.results[0]
    sizes: Mapping[str, Any] = spec["bytes"]
    by = {(result.protocol, result.target): result for result in record.results}
    rows = []
    for name in SHIPPED.values():
        one, sent, noisy = (by.get((protocol, name)) for protocol in ("float16", "transfer", "gaussian"))
        assert one is not None
        cells = [f"`{name}`", f"{sizes[name]:,}", f"{one.n_correct} / {one.n_total}"]
        cells += ["" if cell is None else f"{cell.n_correct} / {cell.n_total}" for cell in (sent, noisy)]
        rows.append(f"| {' | '.join(cells)} |")
    changed = ", ".join(str(r.figures["n_predictions_changed"]) for r in record.results if r.protocol == "float16")
    logits = max(float(str(r.figures["largest_logit_change"])) for r in record.results if r.protocol == "float16")
    lines = [
        "# The networks that come with the package",
        "",
        f"Made by `{record.run['command']}` in {record.run['seconds']:.0f} s (seed {first.seed}; torch "
        f"{first.versions['torch']}, timm {first.versions['timm']}; {first.hardware['processor']}, "
        f"{first.hardware['threads']} thread). They are networks of `defective demo`; their cards, with all settings, "
        "lie beside them in `dcn_plugin/pretrained/weights`. All counts are in `record.json`.",
        "",
        "<!-- --8<-- [start:table] -->",
        f"| network | bytes | clean images right | transferred PGD, eps {EPS} | Gaussian noise, sigma {SIGMA} |",
        "|:--|--:|--:|--:|--:|",
        *rows,
        "<!-- --8<-- [end:table] -->",
        "",
        f"PGD takes {spec['steps']} steps on `{SHIPPED[SOURCE]}`. It is one training run of each: single runs of this "
        "comparison differ by ten points and more, and the settings were chosen to show the effect. "
        "`defective demo` trains three.",
        "",
        f"Storing as float16 changed {changed} of {first.n_total} predictions on clean test images (in the order of "
        f"the table), and no logit by more than {logits:.2g}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for networks, cards, record.json and README.md")
    parser.add_argument("--quick", action="store_true", help="a smoke test: one epoch; needs --out")
    args = parser.parse_args()
    if args.quick and args.out is None:
        parser.error("--quick needs --out: its networks must not replace those of the package")
    spec = SPEC
    if args.quick:
        spec = dataclasses.replace(SPEC, steps=2, training=dataclasses.replace(SPEC.training, epochs=1))
    weights, beside = (WEIGHTS, HERE) if args.out is None else (args.out, args.out)
    # Not the folder that was given: it belongs to the machine.
    command = " ".join(["python -m recipes.pretrained.make", *(["--quick"] if args.quick else [])])
    record = make(spec, weights, command)
    record.write(beside / "record.json")
    write_atomic(beside / "README.md", page(record))
    print(page(record), file=sys.stdout)


if __name__ == "__main__":
    main()
