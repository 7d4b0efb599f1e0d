"""The trained networks of all recipes of an output folder: each is trained once, and found by what it depends on."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import PGD, Attack, DistilledSource, EnsembleSource
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import RunDirectory, Team
from dcn_plugin.experiments.attack_names import read_attack
from dcn_plugin.experiments.datasets import DATA, DataInfo, RecipeData
from dcn_plugin.experiments.networks import PUBLIC, ROUNDS, Job, Network
from dcn_plugin.layers import Normalized
from dcn_plugin.models import MaskExpectation
from dcn_plugin.models.paper_variants import build_variant
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.onednn import narrow_strided_conv
from dcn_plugin.training import (
    Engine,
    TrainConfig,
    distill_source,
    isolated_rng,
    load_network,
    public_images,
    save_network,
    train,
)
from dcn_plugin.training.adversarial import StepImages
from dcn_plugin.training.baselines import BASELINES, apply_baseline, training_config, training_hook
from dcn_plugin.training.distillation import answers_needed
from dcn_plugin.training.history import History

__all__ = ["TrainedNetworks", "at_hand", "build", "public_attacks", "public_jobs", "training_of"]

_LAST = "last.safetensors"
_ON_IMAGENET = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "densenet121": "densenet121",
    "senet18": "legacy_seresnet18",
    "vgg19": "vgg19_bn",
}
PUBLIC_NETS = ("resnet18", "vgg19")
PUBLIC_STEPS = 10
KEPT_OPEN = 64


def build(job: Job) -> nn.Module:
    """Build a network with its initial weights: images in [0, 1] -> logits.

    Raises:
        SpecError: the paper has this variant for another network only, or the network has no version for the data.
        BlockError: its defence is for ResNets only.
    """
    info, network = DATA[job.data], job.network
    with isolated_rng(job.weights_seed):
        inner = _imagenet(job, info) if job.data == "imagenet" else _small(job, info)
    if network.defence is not None:
        inner = apply_baseline(network.defence, inner)
    if network.redrawn:
        inner = MaskExpectation(inner, draws=network.redrawn, seed=job.masks_seed)
    return Normalized(inner, list(info.mean), list(info.std))


def _small(job: Job, info: DataInfo) -> nn.Module:
    network = job.network
    name = f"{network.net}_cifar" + (".mnist" if info.shape == (1, 28, 28) else "")
    options: dict[str, Any] = {"num_classes": info.num_classes, "in_chans": info.shape[0], **_given(network)}
    if network.variant.masked:
        options["img_size"] = info.shape[1:]
    return build_variant(network.variant, name, width=job.scale.width, seed=job.masks_seed, **options)


def _given(network: Network) -> dict[str, Any]:
    """Options of the defective model as timm takes them; blocks are keys of text in TOML, numbers here."""
    options = dict(network.defects)
    if isinstance(options.get("p"), dict):
        options["p"] = {int(block) if block.isdigit() else block: p for block, p in options["p"].items()}
    if isinstance(options.get("blocks"), list):
        options["blocks"] = tuple(options["blocks"])
    return options


def _imagenet(job: Job, info: DataInfo) -> nn.Module:
    import timm

    network, variant = job.network, job.network.variant
    if network.net not in _ON_IMAGENET or variant.top is not None or variant.kind != "neuron" or job.scale.width != 64:
        raise SpecError(
            "This network has no version for ImageNet.", job.title, "p-Bottom of " + ", ".join(_ON_IMAGENET)
        )
    base = _ON_IMAGENET[network.net]
    if not variant.masked:
        return timm.create_model(base, num_classes=info.num_classes)
    # timm's SE-ResNet is no network of the paper: its bottom half stands for it.
    blocks = "bottom" if network.net == "senet18" else "paper"
    options: dict[str, Any] = {"num_classes": info.num_classes, "p": variant.bottom, "blocks": blocks}
    if network.net != "resnet18":
        return timm.create_model(f"defective_{base}", seed=job.masks_seed, **options)
    # The authors' defective ResNet-18 has a 3x3 stem, which no ResNet of timm's has by itself.
    options |= {"img_size": info.shape[1:], "stem_reduction": 4}
    model: Any = timm.create_model("defective_resnet18_cifar", seed=job.masks_seed, **options)
    model.init_weights()  # as timm starts the standard one
    return cast(nn.Module, model)


def training_of(job: Job, net: nn.Module, device: torch.device) -> TrainConfig:
    """How a network is trained: as its scale says, in another memory format where oneDNN is wrong in that one.

    Args:
        job: says the scale.
        net: what :func:`build` makes of it; the channel ablation (DC) has a few channels only.
        device: where it is to train.
    """
    config = dataclasses.replace(job.scale.training, seed=job.order_seed)
    if device.type == "cpu" and narrow_strided_conv(net) is not None:
        config = dataclasses.replace(config, channels_last=False)
    return config


def public_jobs(job: Job) -> list[Job]:
    """The public networks whose images a network with PubDef is trained on."""
    if job.network.defence != "pubdef":
        return []
    return [dataclasses.replace(job, network=Network(net, run=PUBLIC), member=0) for net in PUBLIC_NETS]


def public_attacks(job: Job) -> list[Attack]:
    """The attacks on the public networks of a network with PubDef, at its scale."""
    steps = min(PUBLIC_STEPS, job.scale.max_steps or PUBLIC_STEPS)
    if not job.network.public_attacks:
        return [PGD.paper(8 / 255, steps=steps)]
    channels = DATA[job.data].shape[0]
    made = [read_attack(text).make(job.scale, channels=channels) for text in job.network.public_attacks]
    return list(itertools.chain.from_iterable(made))


def at_hand(job: Job) -> int:
    """How many training images a distilled network begins with."""
    first = -(-job.scale.answers // (1 << (ROUNDS - 1)))  # so that the rounds use the answers up
    return min(first, job.scale.train_images or DATA[job.data].train_images)


class TrainedNetworks:
    """A folder of trained networks, one folder each, shared by all recipes.

    Args:
        folder: where they lie; made when the first is trained.
        data: what they are trained on.
        device: where they compute.
        store: where the images for PubDef are kept.
        accelerator: an :class:`accelerate.Accelerator` whose processes train together, on one folder that all of them
            see; the first one writes. None: this process alone.
        progress: show progress bars.
        engine: what computes the training steps, see :class:`dcn_plugin.training.TrainConfig`; a network has the same
            name whichever did.
    """

    def __init__(
        self,
        folder: Path,
        data: RecipeData,
        *,
        device: torch.device,
        store: RunDirectory,
        accelerator: Any = None,
        progress: bool = False,
        engine: Engine = "dense",
    ) -> None:
        self.engine: Engine = engine
        self.folder, self.data, self.device, self.store, self.progress = folder, data, device, store, progress
        self.accelerator, self._team = accelerator, Team.of(accelerator)
        self._opened: dict[str, nn.Module] = {}

    def path(self, job: Job) -> Path:
        """Folder of a network."""
        return self.folder / job.name

    def has(self, job: Job) -> bool:
        """Whether it is trained to the end."""
        return (self.path(job) / _LAST).is_file()

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """Those that are not trained, each once, public networks and targets before those that need them."""
        missing: dict[str, Job] = {}
        for job in jobs:
            if not self.has(job):
                for needed in (*public_jobs(job), *self.missing(job.targets), job):
                    if not self.has(needed):
                        missing.setdefault(needed.name, needed)
        return list(missing.values())

    def train(self, job: Job) -> None:
        """Train a network, or go on where its training was stopped.

        Raises:
            CheckpointError: its folder holds a run on other images, or of another number of processes.
            SpecError: a batch cannot be shared out among the processes.
        """
        folder, net = self.path(job), build(job).to(self.device)
        images = self.data.train(job.scale.train_images)
        live = job.network.norm_statistics == "live"
        config = dataclasses.replace(
            training_of(job, net, self.device),
            # Masks that change with every step are no list of neurons that an engine could skip.
            engine="c" if live else "dense" if job.network.redrawn else self.engine,
            norm_statistics=job.network.norm_statistics,
        )
        defence = job.network.defence
        if defence is not None:
            config = training_config(defence, config, num_classes=self.data.info.num_classes)
        hook = self._hook(job)
        if self._team.leads:
            write_atomic(folder / "network.json", json.dumps({"title": job.title, **job.key}, indent=1) + "\n")
        if job.targets:
            self._distill(job, net, config)
            return
        train(
            net,
            images,
            config,
            out=folder,
            step_images=hook,
            accelerator=self.accelerator,
            progress=self.progress,
            name=job.title,
        )
        self._team.gather([])  # all have read the state and are done with it, and the network is there for all
        if self._team.leads:
            (folder / "state.safetensors").unlink()  # to go on from, three times as large as the network

    def _distill(self, job: Job, net: nn.Module, config: TrainConfig) -> None:
        """Train a network on its target's answers. A run that was stopped begins anew."""
        made = distill_source(
            net,
            self.open(job.targets),
            self.data.train(at_hand(job)),
            budget=job.scale.answers,
            rounds=ROUNDS,
            config=config,
            seed=job.order_seed,
            batch_size=job.scale.batch_size,
            accelerator=self.accelerator,
            progress=self.progress,
            name=job.title,
        )
        if self._team.leads:
            write_atomic(self.path(job) / "history.json", made.histories[-1].to_json())
            # The network last: where it is, the rest is, too.
            save_network(net, self.path(job) / _LAST, metadata={"answers": str(made.queries)})
        self._team.gather([])

    def history(self, job: Job) -> History:
        """How it was trained."""
        return History.from_json((self.path(job) / "history.json").read_text(encoding="utf-8"))

    def open(self, jobs: Sequence[Job]) -> nn.Module:
        """A trained network in eval mode, or the mean of several."""
        nets = [self._open(job) for job in jobs]
        return nets[0] if len(nets) == 1 else EnsembleSource(nets).eval()

    def _open(self, job: Job) -> nn.Module:
        if job.name not in self._opened:
            net = build(job)
            load_network(net, self.path(job) / _LAST)
            while len(self._opened) >= KEPT_OPEN:
                del self._opened[next(iter(self._opened))]
            if job.targets:
                asked = answers_needed(at_hand(job), rounds=ROUNDS, budget=job.scale.answers)
                net = DistilledSource(net, target_queries=asked)
            self._opened[job.name] = net.to(self.device).eval()
        return self._opened[job.name]

    def _hook(self, job: Job) -> StepImages | None:
        defence = job.network.defence
        if defence is None:
            return None
        baseline = BASELINES[defence]
        settings: dict[str, Any] = {}
        if baseline.madry and job.scale.max_steps is not None:
            steps = min(baseline.madry["steps"], job.scale.max_steps)
            settings = {"steps": steps, "step_size": baseline.madry["steps"] * baseline.madry["step_size"] / steps}
        attacked = self._public_images(job) if baseline.pubdef else None
        return training_hook(defence, adversarial=attacked, settings=settings)

    def _public_images(self, job: Job) -> list[Tensor]:
        """The training images, attacked through each public network; made once."""
        return public_images(
            {public.title: self.open([public]) for public in public_jobs(job)},
            public_attacks(job),
            self.data.train(job.scale.train_images),
            batch_size=job.scale.batch_size,
            store=self.store,
            accelerator=self.accelerator,
            progress=self.progress,
        )


def shortened(config: TrainConfig) -> str:
    """A training in a few words."""
    return f"{config.epochs} epochs, batch {config.batch_size}, {config.schedule}, lr {config.lr:g}"
