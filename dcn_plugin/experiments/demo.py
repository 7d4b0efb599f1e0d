"""The demonstration: do defective nets resist transfer attacks and noise, on real handwritten digits?

A run trains a source, a standard net and a defective net for every keep probability, attacks the source, and
shows the images to the others; or it takes the networks that come with the package. See
:mod:`dcn_plugin.experiments.demo_networks` for the networks and :mod:`dcn_plugin.experiments.demo_spec` for how the
settings were chosen.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet, Splits, load_digits
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import (
    AdversarialSet,
    ExampleRow,
    Examples,
    Result,
    ResultFile,
    add_results,
    gaussian,
    measure_targets,
    predict,
)
from dcn_plugin.experiments.demo_networks import (
    BASELINE,
    SHIPPED,
    SHIPPED_SEED,
    SHIPPED_SPEC,
    SOURCE,
    network_names,
    shipped_networks,
    train_network,
)
from dcn_plugin.experiments.demo_spec import DemoSpec
from dcn_plugin.experiments.finished_seeds import FinishedSeed, fixed_threads, now
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.pretrained import pretrained_card
from dcn_plugin.support.atomic_file import check_output
from dcn_plugin.support.progress import log_line, progress_bar
from dcn_plugin.training import TrainConfig

__all__ = ["BASELINE", "DemoOutcome", "DemoSpec", "run_demo"]

_SEEDS = (0, 1, 2)
_EXAMPLES = 6


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
        first = "first " if spec.get("images") else ""
        return [
            "Every network here is the same small ResNet, trained in the same way on scikit-learn's handwritten "
            f"digits ({spec['size']} x {spec['size']} pixels). In a defective one, a mask drawn once before training "
            f"sets neurons of the {spec['blocks']} blocks to zero, in training and in test; p is the share kept.",
            "An attacker who cannot see these networks trains one of their own, the source, makes adversarial images "
            f"on it with {test.attack} (L-inf, {test.steps} steps) from the {first}{test.n_total} test images, and "
            "sends them to the others. This is a black-box threat: who knows a network's weights and masks attacks it "
            "directly, and that is not measured here.",
        ]

    @property
    def facts(self) -> dict[str, str]:
        """How it was made, for the end of the report."""
        spec, record = self.file.spec, self.file.results[0]
        training, seconds = spec["training"], self.file.run["seconds"].values()
        return {
            "Network": f"ResNet, {spec['width']} channels in the stem, {spec['layers']} blocks",
            **_origin(spec.get("pretrained")),
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


def _origin(shipped: Mapping[str, str] | None) -> dict[str, str]:
    """Where networks come from that this run did not train."""
    if shipped is None:
        return {}
    files = ", ".join(f"{name} (SHA-256 {digest[:16]})" for name, digest in shipped.items())
    return {"Not trained in this run": f"they come with the package, with float16 weights: {files}"}


def _telling(training: Mapping[str, Any]) -> dict[str, Any]:
    """The epochs, and the options that are not the default."""
    defaults = json.loads(TrainConfig().to_json())
    return {key: value for key, value in training.items() if key == "epochs" or value != defaults.get(key)}


def run_demo(
    out: str | os.PathLike[str],
    *,
    seeds: Sequence[int] | None = None,
    spec: DemoSpec | None = None,
    pretrained: bool = False,
    progress: bool = False,
    fresh: bool = False,
) -> DemoOutcome:
    """Run the demonstration and write ``results.json``.

    Each trained seed's results are written to ``out/seeds`` as soon as they are there, and reused by a later run with
    the same settings, code, versions and machine: a run that was killed goes on where it stopped.

    Args:
        out: folder for the results; made if need be.
        seeds: one run each, different from each other, >= 0; 0, 1 and 2 by default.
        spec: the settings; by default :class:`DemoSpec`'s, with ``pretrained`` fewer steps and the first 50 images.
        pretrained: take the networks that come with the package, trained with seed 0 and p = 0.3, and train none. It
            takes seconds, so that nothing is kept for reuse, and what is in ``out/seeds`` stays as it is.
        progress: show a progress bar on stderr, or a line a seed where that is no terminal.
        fresh: reuse nothing.

    Returns:
        The records (the same bits for the same seeds, spec and machine) and images to look at.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        DataError: ``out`` is a file.
        OutputError: files cannot be written into it.
        SpecError: no seed, a seed twice, or a negative one; with ``pretrained``, seeds or settings of other networks.
    """
    spec = spec or (SHIPPED_SPEC if pretrained else DemoSpec())
    seeds = _checked(seeds, pretrained=pretrained)
    folder = Path(out)
    check_output(folder)
    shipped = shipped_networks(spec) if pretrained else None
    hashes = {name: pretrained_card(name).sha256 for name in SHIPPED.values()} if pretrained else None
    splits = _images(spec)
    finished: dict[int, FinishedSeed] = {}
    reused = []
    stages = (0 if pretrained else len(network_names(spec))) + len(spec.eps) + 1
    bar = progress_bar(stages * len(seeds), "", show=progress, unit="stage")
    with fixed_threads(spec.threads), bar:
        for number, seed in enumerate(seeds, 1):
            settings = spec.to_json([seed], shipped=hashes)
            record = None if fresh or pretrained else FinishedSeed.read(folder, seed, settings)
            if record is None:
                start = time.perf_counter()
                results, examples = _run_seed(spec, seed, splits, bar, shipped)
                run = {"created": now(), "seconds": round(time.perf_counter() - start, 2)}
                record = FinishedSeed(ResultFile(settings, tuple(results), run), examples)
                if not pretrained:
                    record.write(folder, seed)
                how = f"finished in {run['seconds']:.1f} s"
            else:
                reused.append(seed)
                bar.update(stages)
                how = "was finished before, its results are reused"
            finished[seed] = record
            log_line(f"seed {seed}, {number} of {len(seeds)}: {how}", show=progress)
    file = ResultFile(
        spec.to_json(seeds, shipped=hashes),
        tuple(result for part in finished.values() for result in part.file.results),
        {"created": now(), "seconds": {str(seed): part.file.run.get("seconds") for seed, part in finished.items()}},
    )
    add_results(folder / "results.json", file.spec, file.results, file.run)
    return DemoOutcome(file, finished[seeds[0]].examples, tuple(reused))


def _images(spec: DemoSpec) -> Splits:
    splits = load_digits(size=spec.size)
    if spec.images is None or spec.images >= len(splits.test):
        return splits
    few = splits.test.subset(torch.arange(spec.images), name=f"{splits.test.name}[:{spec.images}]")
    return dataclasses.replace(splits, test=few)


def _checked(seeds: Sequence[int] | None, *, pretrained: bool) -> tuple[int, ...]:
    if pretrained:
        if seeds is not None and tuple(seeds) != (SHIPPED_SEED,):
            raise SpecError(
                "The networks that come with the package were trained with one seed.",
                tuple(seeds),
                f"({SHIPPED_SEED},), or no seeds at all",
                "leave the seeds out, or train the networks: without --pretrained (pretrained=False)",
            )
        return (SHIPPED_SEED,)
    given = _SEEDS if seeds is None else tuple(seeds)
    if not given or len(set(given)) < len(given) or min(given) < 0:
        raise SpecError("The seeds are not usable.", given, "one or more different ints >= 0")
    return given


def _run_seed(
    spec: DemoSpec, seed: int, splits: Splits, bar: Any, shipped: Mapping[str, nn.Module] | None
) -> tuple[list[Result], Examples]:
    nets = dict(shipped or {})
    for name in network_names(spec):
        if name not in nets:
            bar.set_description(f"seed {seed}, training {name}")
            nets[name] = train_network(spec, seed, name, splits, progress=not bar.disable)
            bar.update()
    targets = {name: net for name, net in nets.items() if name != SOURCE}
    results = []
    sets = []
    for eps in spec.eps:
        bar.set_description(f"seed {seed}, attacking with eps {eps}")
        sets.append(AdversarialSet(SOURCE, nets[SOURCE], PGD.paper(eps, steps=spec.steps), splits.test))
        _ = sets[-1].loaded  # the examples need the images too
        results += measure_targets(sets[-1], targets, training_seed=seed)
        bar.update()
    bar.set_description(f"seed {seed}, adding noise")
    results += gaussian(targets, splits.test, spec.sigmas, training_seed=seed)
    bar.update()
    return results, _examples(nets, sets)


def _examples(nets: dict[str, nn.Module], sets: Sequence[AdversarialSet]) -> Examples:
    middle = sets[len(sets) // 2]
    data = middle.data
    assert isinstance(data, ImageSet)
    chosen = middle.loaded.fooled.nonzero().flatten()[:_EXAMPLES]
    if not len(chosen):
        chosen = torch.arange(min(_EXAMPLES, len(data)))
    states = {"clean": data.images} | {
        f"eps {adversarial.attack.eps}": adversarial.loaded.images for adversarial in sets
    }
    rows = []
    for title, images in states.items():
        predictions = {name: predict(net, images[chosen])[0].numpy() for name, net in nets.items()}
        rows.append(ExampleRow(title, images[chosen].numpy(), predictions))
    masks = {}
    for name, net in nets.items():
        mask = next((module for module in net.modules() if isinstance(module, DefectMask2d)), None)
        if mask is not None:
            masks[f"{name}\nfirst mask, channel 0"] = mask.kept()[0].numpy()
    why = f"The first {len(chosen)} test images on which the attack with eps {middle.attack.eps} fooled the source."
    return Examples(why, data.labels[chosen].numpy(), tuple(rows), masks)
