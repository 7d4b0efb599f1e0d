"""The demonstration: do defective nets resist transfer attacks and noise, on real handwritten digits?

A run trains a source, a standard net and a defective net for every keep probability, attacks the source, and
shows the images to the others. The targets of one run start from the same weights and see the same batches; only
their masks differ. The source is another training run. No target is treated in a way of its own.

Network and schedule were chosen by hand among about 25 settings, on other training seeds and another split, by
looking at clean accuracy and at the transfer result itself, on test images that overlap the demonstration's: a
setting was wanted that trains in seconds and shows the effect. Under weaker weight decay, or with fewer blocks at the
bottom, the same comparison gave smaller differences; between single runs it varies by ten points and more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet, Splits, load_digits
from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.evaluate import (
    AdversarialSet,
    ExampleRow,
    Examples,
    Result,
    ResultFile,
    code_hash,
    gaussian,
    measure_targets,
    predict,
)
from dcn_plugin.experiments.seeds import FinishedSeed, fixed_threads, now
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.models import cifar_resnet
from dcn_plugin.surgery import defectify
from dcn_plugin.training import TrainConfig, isolated_rng, train

__all__ = ["BASELINE", "DemoOutcome", "DemoSpec", "run_demo"]

BASELINE = "standard"
SOURCE = "source"
_EXAMPLES = 6


@dataclass(frozen=True)
class DemoSpec:
    """The settings of the demonstration; the defaults are those of ``defective demo``.

    Args:
        size: height and width of the images.
        width: channels of the ResNet's stem.
        layers: basic blocks in its four layers.
        blocks: where the masks go, as in :func:`dcn_plugin.defectify`.
        keep: keep probabilities of the defective nets.
        training: of every net alike; its seed is replaced.
        eps: radii of the PGD attack, in units of [0, 1] images.
        steps: steps of the attack.
        sigmas: of the Gaussian noise, in the same units.
        threads: torch's threads. With one, the numbers do not depend on the number of cores.
    """

    size: int = 16
    width: int = 16
    layers: tuple[int, int, int, int] = (2, 2, 1, 1)
    blocks: str = "bottom"
    keep: tuple[float, ...] = (0.5, 0.3, 0.1)
    training: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=8, weight_decay=5e-3, shift=1))
    eps: tuple[float, ...] = (0.1, 0.2, 0.3)
    steps: int = 20
    sigmas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    threads: int = 1

    def to_json(self, seeds: Sequence[int]) -> dict[str, Any]:
        """All that the numbers depend on, but for the machine and the versions, as JSON values."""
        own = dataclasses.asdict(self)
        del own["training"]["seed"]
        return dict(json.loads(json.dumps({"name": "demo", **own, "seeds": list(seeds), "code": code_hash()})))


@dataclass(frozen=True, eq=False)
class DemoOutcome:
    """What the demonstration found.

    Args:
        file: the records of all seeds.
        examples: images of the first seed.
        reused: seeds whose results were there already.
    """

    file: ResultFile
    examples: Examples
    reused: tuple[int, ...]

    @property
    def intro(self) -> list[str]:
        """What was done, in words."""
        spec, test = self.file.spec, self.file.results[0]
        return [
            "Every network here is the same small ResNet, trained in the same way on scikit-learn's handwritten "
            f"digits ({spec['size']} x {spec['size']} pixels). In a defective one, a mask drawn once before training "
            f"sets neurons of the {spec['blocks']} blocks to zero, in training and in test; p is the share kept.",
            "An attacker who cannot see these networks trains one of their own, the source, makes adversarial images "
            f"on it with {test.attack} (L-inf, {test.steps} steps) from the {test.n_total} test images, and sends them "
            "to the others. This is a black-box threat: who knows a network's weights and masks attacks it directly, "
            "and that is not measured here.",
        ]

    @property
    def facts(self) -> dict[str, str]:
        """How it was made, for the end of the report."""
        spec, record = self.file.spec, self.file.results[0]
        training, seconds = spec["training"], self.file.run["seconds"].values()
        return {
            "Network": f"ResNet, {spec['width']} channels in the stem, {spec['layers']} blocks",
            "Masks": f"{spec['blocks']} blocks",
            "Choice of settings": "by hand, to show the effect: about 25 were tried on other training seeds and "
            "another split, whose test images overlap these; under others the differences were smaller",
            "Training": ", ".join(f"{key} {value}" for key, value in _telling(training).items()),
            "Images": f"{record.data}, SHA-256 {record.data_hash[:16]}",
            "Seeds": ", ".join(map(str, spec["seeds"])),
            "Seconds a seed": ", ".join(f"{value:.0f}" for value in seconds),
            "Versions": ", ".join(f"{key} {value}" for key, value in record.versions.items()),
            "Machine": ", ".join(f"{key}: {value}" for key, value in record.hardware.items()),
            "Made": str(self.file.run["created"]),
        }


def _telling(training: Mapping[str, Any]) -> dict[str, Any]:
    """The epochs, and the options that are not the default."""
    usual = json.loads(TrainConfig().to_json())
    return {key: value for key, value in training.items() if key == "epochs" or value != usual.get(key)}


def run_demo(
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    spec: DemoSpec | None = None,
    progress: bool = False,
    fresh: bool = False,
) -> DemoOutcome:
    """Run the demonstration and write ``results.json``.

    Each seed's results are written to ``out/seeds`` as soon as they are there, and reused by a later run with the same
    settings, code, versions and machine: a run that was killed goes on where it stopped.

    Args:
        out: folder for the results; made if need be.
        seeds: one run each, different from each other, >= 0.
        spec: the settings.
        progress: show a progress bar on stderr, if that is a terminal.
        fresh: reuse nothing.

    Returns:
        The records (the same bits for the same seeds, spec and machine) and images to look at.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        DataError: ``out`` is a file.
        SpecError: no seed, a seed twice, or a negative one.
    """
    from tqdm import tqdm

    spec = spec or DemoSpec()
    seeds = tuple(seeds)
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise SpecError("The seeds are not usable.", seeds, "one or more different ints >= 0")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise DataError("Results go into a folder.", str(folder), "a folder, or a name that is free")
    splits = load_digits(size=spec.size)
    finished: dict[int, FinishedSeed] = {}
    reused = []
    stages = len(_names(spec)) + len(spec.eps) + 1
    bar = tqdm(
        total=stages * len(seeds), disable=None if progress else True, unit="stage", leave=False, dynamic_ncols=True
    )
    with fixed_threads(spec.threads), bar:
        for seed in seeds:
            known = None if fresh else FinishedSeed.read(folder, seed, spec.to_json([seed]))
            if known is None:
                start = time.perf_counter()
                results, examples = _run_seed(spec, seed, splits, bar)
                run = {"created": now(), "seconds": round(time.perf_counter() - start, 2)}
                known = FinishedSeed(ResultFile(spec.to_json([seed]), tuple(results), run), examples)
                known.write(folder, seed)
            else:
                reused.append(seed)
                bar.update(stages)
            finished[seed] = known
    whole = ResultFile(
        spec.to_json(seeds),
        tuple(result for one in finished.values() for result in one.file.results),
        {"created": now(), "seconds": {str(seed): one.file.run.get("seconds") for seed, one in finished.items()}},
    )
    whole.write(folder / "results.json")
    return DemoOutcome(whole, finished[seeds[0]].examples, tuple(reused))


def _run_seed(spec: DemoSpec, seed: int, splits: Splits, bar: Any) -> tuple[list[Result], Examples]:
    nets: dict[str, nn.Module] = {}
    for name, keep in _names(spec).items():
        bar.set_description(f"seed {seed}, training {name}")
        nets[name] = _trained(spec, seed, name, keep, splits, progress=not bar.disable)
        bar.update()
    targets = {name: net for name, net in nets.items() if name != SOURCE}
    results = []
    made = []
    for eps in spec.eps:
        bar.set_description(f"seed {seed}, attacking with eps {eps}")
        made.append(AdversarialSet(SOURCE, nets[SOURCE], PGD(eps, steps=spec.steps), splits.test))
        _ = made[-1].loaded  # the examples need the images too
        results += measure_targets(made[-1], targets, seed=seed)
        bar.update()
    bar.set_description(f"seed {seed}, adding noise")
    results += gaussian(targets, splits.test, spec.sigmas, seed=seed)
    bar.update()
    return results, _examples(nets, made)


def _names(spec: DemoSpec) -> dict[str, float | None]:
    """Name of every net -> its keep probability, None for a standard one."""
    return {SOURCE: None, BASELINE: None, **{f"defective p={p:g}": p for p in spec.keep}}


def _trained(spec: DemoSpec, seed: int, name: str, keep: float | None, splits: Splits, *, progress: bool) -> nn.Module:
    role = SOURCE if name == SOURCE else "target"
    channels, height, width = splits.train.shape
    net: nn.Module
    with isolated_rng(_derived(seed, role, "weights")):
        net = cifar_resnet(spec.layers, num_classes=splits.train.num_classes, in_chans=channels, width=spec.width)
    if keep is not None:
        net = defectify(
            net, spec.blocks, keep, input_size=(channels, height, width), seed=_derived(seed, role, "masks")
        )
    config = dataclasses.replace(spec.training, seed=_derived(seed, role, "order"))
    train(net, splits.train, config, progress=progress, name=name)
    return net


def _derived(seed: int, role: str, what: str) -> int:
    """Independent seeds from one: 62 bits of a hash."""
    digest = hashlib.blake2b(f"demo|{seed}|{role}|{what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2


def _examples(nets: dict[str, nn.Module], made: Sequence[AdversarialSet]) -> Examples:
    middle = made[len(made) // 2]
    data = middle.data
    assert isinstance(data, ImageSet)
    chosen = middle.loaded.fooled.nonzero().flatten()[:_EXAMPLES]
    if not len(chosen):
        chosen = torch.arange(min(_EXAMPLES, len(data)))
    states = {"clean": data.images} | {f"eps {one.attack.eps}": one.loaded.images for one in made}
    rows = []
    for title, images in states.items():
        said = {name: predict(net, images[chosen])[0].numpy() for name, net in nets.items()}
        rows.append(ExampleRow(title, images[chosen].numpy(), said))
    masks = {}
    for name, net in nets.items():
        mask = next((module for module in net.modules() if isinstance(module, DefectMask2d)), None)
        if mask is not None:
            masks[f"{name}\nfirst mask, channel 0"] = mask.kept()[0].numpy()
    why = f"The first {len(chosen)} test images on which the attack with eps {middle.attack.eps} fooled the source."
    return Examples(why, data.labels[chosen].numpy(), tuple(rows), masks)
