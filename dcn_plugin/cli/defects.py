"""Where ``defective train`` starts from, and how its defects come: the weights of a trained network, gradual masks."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcn_plugin.errors import SpecError
from dcn_plugin.support.named_options import parse_spec
from dcn_plugin.support.suggestions import check_known

if TYPE_CHECKING:
    from torch import nn

    from dcn_plugin.training import TrainConfig

__all__ = ["Defects", "add_defects", "add_init_from", "open_defects"]

BASE = "base"
_SCHEDULE = {"schedule": "gradual", "share": "gradual_share", "order": "gradual_order", "start": "gradual_start"}
_MASKS = ("p", "blocks", "mode", "sampling", "seed", "span")


def add_init_from(parser: argparse.ArgumentParser) -> None:
    """``--init-from``, which subcommands that start from trained weights share."""
    parser.add_argument(
        "--init-from",
        metavar="FILE",
        help="start from trained weights: a file of weights for this architecture, with or without masks of its own, "
        "which are left out; or base: those that timm has for it",
    )


def add_defects(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
    add_init_from(parser)
    parser.add_argument(
        "--defects",
        metavar="KIND,...",
        help="gradual: neurons die a few at a time, over share=0.5 of the steps, schedule=linear or cosine, "
        "order=together or bottom-up, from start=1 on. sudden: all at once, before the first step. A model without "
        "masks gets some, as p=0.3, blocks=bottom, mode=, sampling=, seed=, span= say; one that has some keeps them",
    )


@dataclass(frozen=True)
class Defects:
    """A start that fits the arguments; nothing is opened yet.

    Args:
        init_from: "base", a file, or None.
        kind: "gradual", "sudden", or None: the model is trained as it is.
        options: what was written behind the kind.
    """

    init_from: str | None
    kind: str | None
    options: Mapping[str, Any]

    def config(self, config: TrainConfig) -> TrainConfig:
        """How to train."""
        if self.kind != "gradual":
            return config
        fields = {_SCHEDULE[key]: value for key, value in self.options.items() if key in _SCHEDULE}
        return dataclasses.replace(config, **{"gradual": "linear", **fields})

    def spelled(self, model: str) -> str:
        """The model as :func:`open_model` has to make it."""
        if self.init_from != BASE:
            return model
        head = parse_spec(model).head
        return f"{model},{'init_from=base' if head.startswith('defective_') else 'pretrained=true'}"

    def network(self, model: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
        """The network to train: with the weights it starts from, and with masks.

        Args:
            model: as it was opened; weights are loaded into it.
            shape: (C, H, W) of the images.

        Raises:
            CheckpointError: the weights do not fit.
            SpecError: masks were described for a network that has some.
        """
        from dcn_plugin.checkpoint import load_weights
        from dcn_plugin.surgery import defectify, is_defective

        masks = {key: value for key, value in self.options.items() if key in _MASKS}
        if masks and is_defective(model):
            raise SpecError(
                "The model has masks already, and --defects describes others.",
                masks,
                "one of the two",
                "write them at the model, e.g. defective_resnet18,p=0.3, and leave them out of --defects",
            )
        if self.init_from not in (None, BASE):
            load_weights(model, Path(self.init_from), masks=False)
        return model if self.kind is None or is_defective(model) else defectify(model, input_size=shape, **masks)

    @property
    def about(self) -> dict[str, str]:
        """What a run that goes on has to have in common with its start."""
        about = {}
        if self.init_from is not None:
            about["init_from"] = BASE if self.init_from == BASE else _digest(Path(self.init_from))
        if masks := {key: self.options[key] for key in _MASKS if key in self.options}:
            about["defects"] = str(masks)
        return about


def open_defects(args: argparse.Namespace) -> Defects:
    """Check the arguments.

    Raises:
        SpecError: an unknown kind or option, or a start that the model cannot have.
        OSError: the file of weights is not there.
    """
    from dcn_plugin.cli.models import WEIGHT_FILES

    kind, options = None, {}
    if args.defects is not None:
        spec = parse_spec(args.defects)
        kind, options = spec.head, dict(spec.options)
        check_known("kind of --defects", kind, ("gradual", "sudden"))
        for key in options:
            check_known(f"option of {kind} defects", key, (*(_SCHEDULE if kind == "gradual" else ()), *_MASKS))
    if args.init_from == BASE:
        head = parse_spec(args.model).head
        if ":" in head or head.endswith(WEIGHT_FILES):
            raise SpecError("Only a model of timm's has a base.", args.model, "--init-from FILE with its weights")
    elif args.init_from is not None:
        with open(args.init_from, "rb"):
            pass
    return Defects(args.init_from, kind, options)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
