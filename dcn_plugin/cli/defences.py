"""The defence that ``defective train`` trains with: a baseline by name, adversarial training, public models."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcn_plugin.cli.attacks import ATTACKS, open_attacks
from dcn_plugin.cli.models import open_models
from dcn_plugin.errors import SpecError
from dcn_plugin.support.named_options import Spec, parse_spec
from dcn_plugin.support.suggestions import check_known

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dcn_plugin.attacks import Attack
    from dcn_plugin.training import StepImages, TrainConfig

__all__ = ["Defence", "add_defence", "open_defence"]


def add_defence(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="another defence, alone or together with defects: spatial-dropout, dropblock, label-smoothing, madry or "
        "pubdef; the last two take settings, e.g. madry,eps=0.3",
    )
    parser.add_argument(
        "--adversarial",
        nargs="?",
        const="",
        metavar="KEY=VALUE,...",
        help="adversarial training (Madry), also beside a baseline; settings default to eps=8/255,steps=7,"
        "step_size=eps/4",
    )
    parser.add_argument(
        "--public",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="for pubdef: a trained public model, written like a target of defective evaluate, e.g. "
        "vgg=vgg19_cifar,checkpoint_path=vgg.safetensors; may be given several times",
    )
    parser.add_argument(
        "--public-attack",
        action="append",
        default=[],
        metavar="ATTACK",
        help=f"for pubdef: an attack on the public models ({ATTACKS}); default: pgd,eps=8/255,steps=10",
    )
    parser.add_argument(
        "--public-images",
        metavar="DIR",
        help="for pubdef: folder that keeps the attacked images; runs may share it (default: public in --out)",
    )


@dataclass(frozen=True)
class Defence:
    """A defence that fits the arguments; models are not opened yet.

    Args:
        name: one of the baselines.
        settings: of PubDef.
        ready: the hook of adversarial training, if there is one.
        public: public models for PubDef, as they were written.
        attacks: on them.
        folder: where their images are kept.
    """

    name: str
    settings: Mapping[str, Any]
    ready: StepImages | None
    public: list[str]
    attacks: list[Attack]
    folder: str

    def config(self, config: TrainConfig, *, num_classes: int) -> TrainConfig:
        """How to train."""
        from dcn_plugin.training import training_config

        return training_config(self.name, config, num_classes=num_classes)

    def network(self, model: nn.Module) -> nn.Module:
        """The network to train."""
        from dcn_plugin.training import apply_baseline

        return apply_baseline(self.name, model)

    def hook(
        self, data: Any, *, device: torch.device, accelerator: Any, progress: bool, tell: Callable[[str], None]
    ) -> StepImages | None:
        """What changes the batches; for PubDef the training images are attacked first.

        Args:
            data: the training images.
            device: where the public models compute.
            accelerator: whose processes share that, or None.
            progress: show a bar.
            tell: gets one line a model.
        """
        from dcn_plugin.evaluate import RunDirectory
        from dcn_plugin.training import public_images, training_hook
        from dcn_plugin.training.checks import check_fit

        if not self.public:
            return self.ready
        sources = open_models(self.public, "public models", device=device, tell=tell)
        for source in sources.values():
            check_fit(source, data.shape, data.num_classes)
        store = RunDirectory(self.folder)
        adversarial = public_images(
            sources, self.attacks, data, store=store, accelerator=accelerator, progress=progress
        )
        return training_hook(self.name, adversarial=adversarial, settings=self.settings)


def open_defence(args: argparse.Namespace, config: TrainConfig) -> Defence:
    """Check the arguments against one another and the training.

    Raises:
        SpecError: an unknown baseline or setting, or arguments that do not go together.
    """
    from dcn_plugin.support.atomic_file import check_output
    from dcn_plugin.training import BASELINES

    spec = parse_spec(args.baseline or "standard")
    check_known("baseline", spec.head, BASELINES)
    baseline = BASELINES[spec.head]
    attack_settings = baseline.madry or baseline.pubdef
    if unknown := sorted(spec.options.keys() - attack_settings.keys()):
        raise SpecError(f"Baseline {spec.head!r} has no such setting.", unknown, ", ".join(attack_settings) or "none")
    if attack_settings and args.adversarial is not None:
        raise SpecError(
            f"--adversarial and --baseline {spec.head} both change the images of a step.",
            args.adversarial,
            "one of the two",
        )
    if baseline.true_class != 1 and args.label_smoothing is not None:
        raise SpecError(
            f"--baseline {spec.head} brings its own label smoothing.", args.label_smoothing, "one of the two"
        )
    attacks: list[Attack] = []
    if baseline.pubdef:
        eps = spec.options.get("eps", baseline.pubdef["eps"])
        attacks = open_attacks(args.public_attack or [f"pgd,eps={eps},steps=10"])
        _check_public(args, attacks, eps, config)
    elif given := [f"--{name.replace('_', '-')}" for name in _PUBLIC if getattr(args, name)]:
        raise SpecError("Public models are for --baseline pubdef.", ", ".join(given), "without them, or pubdef")
    folder = args.public_images or os.path.join(args.out, "public")
    if baseline.pubdef:
        check_output(folder)
    return Defence(spec.head, spec.options, _ready(args.adversarial, spec), args.public, attacks, folder)


def _ready(adversarial: str | None, spec: Spec) -> StepImages | None:
    """The hook, where it needs no images."""
    import torch

    from dcn_plugin.training import madry

    if adversarial is not None:
        hook: StepImages = parse_spec(f"madry,{adversarial}" if adversarial else "madry").call(madry)
        return hook
    if spec.head != "pubdef":
        return _training_hook(spec)
    # One pixel: so a setting that is out of range is found before the public models are attacked.
    _training_hook(spec, adversarial=[torch.zeros(1, 1, 1, 1)])
    return None


def _training_hook(spec: Spec, **images: Any) -> StepImages | None:
    from dcn_plugin.training import training_hook

    try:
        return training_hook(spec.head, settings=spec.options, **images)
    except TypeError as error:  # a value of another type
        raise SpecError(
            f"Baseline {spec.head!r} does not take these settings ({error}).", dict(spec.options)
        ) from error


_PUBLIC = ("public", "public_attack", "public_images")


def _check_public(args: argparse.Namespace, attacks: list[Attack], eps: float, config: TrainConfig) -> None:
    if not args.public:
        raise SpecError(
            "PubDef trains on images attacked through public models, and none is given.",
            None,
            "--public NAME=MODEL with trained weights, at least once",
            "train one first, e.g. defective train vgg19_cifar ..., and name its checkpoint",
        )
    if config.min_scale is not None:
        raise SpecError(
            "PubDef needs images that are held in memory.", {"min_scale": config.min_scale}, "no --min-scale"
        )
    for attack in attacks:
        if attack.eps is None or attack.eps > eps:
            raise SpecError(
                f"The attack {attack} on public models changes more than PubDef allows.",
                attack.eps,
                f"at most eps={eps:.4f}",
                "--baseline pubdef,eps=... with the attack's, or a smaller attack",
            )
