"""``defective evaluate PROTOCOL``: measure models of any origin on images of any origin.

The protocols, their arguments and their words are those of the table; none is known by name here.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcn_plugin.cli.arguments import (
    Commands,
    add_no_progress,
    folder,
    natural,
    positive,
    positive_number,
    probability,
    radius,
    size,
)
from dcn_plugin.cli.attacks import ATTACKS, open_attacks
from dcn_plugin.cli.models import MODELS, open_models
from dcn_plugin.cli.processes import launched, open_accelerator, open_device
from dcn_plugin.errors import SpecError
from dcn_plugin.support import startup

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dcn_plugin.evaluate.protocol import Option, Protocol

__all__ = ["add", "add_protocols"]

_IMAGES = (
    "images: digits, folder:PATH, npz:FILE, cifar10:ROOT, cifar100:ROOT, cifar10c:ROOT, mnist:ROOT, fashionmnist:ROOT, "
    "stl10:ROOT or svhn:ROOT, with options behind it: channels=1 (grey), class_names=FILE (the classes of the network "
    "where a folder holds some of them, or in another order; also the training folder, or the network's file)"
)


def add(commands: Commands) -> None:
    """Add the subcommand, without its protocols."""
    commands.add_parser(
        "evaluate",
        help="measure models: transfer, white-box, Boundary, noise, shape and texture",
        description="Measure any models on any images with a protocol of the paper. Finished measurements and "
        "adversarial images are kept in --out: a run that was stopped goes on where it was, and a new target meets the "
        "images that are there. Prints tables; writes results.json, report.html and plots. Several processes, started "
        "with accelerate launch -m dcn_plugin.cli evaluate ... or torchrun -m dcn_plugin.cli evaluate ..., share the "
        "images batch by batch and give the same records.",
    )


def add_protocols(parser: argparse.ArgumentParser) -> None:
    """Add the protocols to the subcommand. They say themselves what they take, and with them torch is loaded."""
    startup.finish()
    from dcn_plugin.evaluate.protocols import PROTOCOLS

    protocols = parser.add_subparsers(title="protocols", required=True, metavar="PROTOCOL")
    for protocol in PROTOCOLS.values():
        for name in protocol.commands or (protocol.name,):
            words = protocol.help.format(attack=name)
            command = protocols.add_parser(name, help=words, description=words)
            command.set_defaults(run=functools.partial(_run, protocol), protocol=name)
            _add_models(command, protocol)
            _add_data(command, protocol)
            for option in protocol.options:
                _add_option(command, option)
            _add_run(command)


def _add_models(parser: argparse.ArgumentParser, protocol: Protocol) -> None:
    parser.add_argument(
        "--target",
        action="append",
        required=True,
        metavar="NAME=MODEL",
        help=f"model to measure, again for more: {MODELS}",
    )
    if protocol.sources:
        parser.add_argument(
            "--source",
            action="append",
            required=protocol.sources == "needed",
            default=[],
            metavar="NAME=MODEL",
            help="model to attack, again for more, written like a target; A+B names an ensemble of two sources",
        )
    if protocol.commands:
        parser.add_argument(
            "--options", default="", metavar="KEY=VALUE,...", help="of the attack, e.g. max_queries=1000"
        )
    elif protocol.attacks is not None:
        parser.add_argument(
            "--attack",
            action="append",
            default=[],
            metavar="ATTACK",
            help=f"attack, again for more: {ATTACKS} (default: {' '.join(protocol.attacks)})",
        )


def _add_data(parser: argparse.ArgumentParser, protocol: Protocol) -> None:
    parser.add_argument("--data", required=True, metavar="DATA", help=_DATA[protocol.data].help)
    if protocol.data == "pair":
        parser.add_argument("--stylized", required=True, metavar="DIR", help="the stylised images, in the same layout")
    parser.add_argument(
        "--size", type=size, metavar="PIXELS", help="resize and cut images of a folder to it: a side, or HxW"
    )
    parser.add_argument(
        "--resize", type=positive, metavar="PIXELS", help="shorter side before the cut, e.g. 256 for 224"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="measure only the first N images (default: all)")


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    default = "" if option.default is None else f" (default: {_default_text(option.default)})"
    parser.add_argument(
        _flag(option),
        action="append" if option.several else "store",
        type=_TYPES.get(option.kind, str),
        choices=option.choices or None,
        default=None if option.several else option.default,
        required=option.required,
        metavar=None if option.choices else option.metavar,
        help=option.help + default,
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=folder, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="S", help="of the models' training, for the records (default: 0)"
    )
    parser.add_argument("--batch-size", type=positive, default=256, metavar="N", help="images at a time (default: 256)")
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="DEVICE",
        help="torch device, e.g. cuda (default: cpu; train takes cuda by itself, but a measurement is to repeat where "
        "there is none)",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="make defective models compact first: the same outputs up to rounding, faster where it gains",
    )
    parser.add_argument("--baseline", metavar="NAME", help="target that the report holds the others against")
    parser.add_argument("--fresh", action="store_true", help="measure again what is finished")
    add_no_progress(parser)


def _flag(option: Option) -> str:
    return option.flag or f"--{option.name.replace('_', '-')}"


def _default_text(value: Any) -> str:
    """As a user would write it: 0.99, 8/255, "2, 4, 8"."""
    if isinstance(value, tuple):
        return ", ".join(map(_default_text, value))
    if isinstance(value, float) and float(f"{value:g}") != value:
        return str(Fraction(value).limit_denominator(255))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _run(protocol: Protocol, args: argparse.Namespace) -> int:
    from dcn_plugin.cli.report import show
    from dcn_plugin.evaluate import RunDirectory
    from dcn_plugin.evaluate.protocol import Request

    store = RunDirectory(args.out, fresh=args.fresh)
    accelerator = open_accelerator(args.device) if launched() else None
    first = accelerator is None or accelerator.is_main_process
    device = open_device(args.device) if accelerator is None else accelerator.device

    def tell(line: str) -> None:
        if first:
            print(f"defective: {line}", file=sys.stderr)

    opener = _Opener(device, tell, compact=args.compact)
    targets = opener.models(args.target, "targets")
    if args.baseline is not None and args.baseline not in targets:
        raise SpecError("The baseline is not among the targets.", args.baseline, ", ".join(targets))
    sources = opener.sources(getattr(args, "source", []))
    request = Request(
        targets=targets,
        sources=sources,
        attacks=open_attacks(_attacks(protocol, args)),
        data=_DATA[protocol.data].open(args, [*targets.values(), *sources.values()]),
        options=_options(protocol, args),
        run={
            "training_seed": args.seed,
            "batch_size": args.batch_size,
            "store": store,
            "accelerator": accelerator,
            "progress": not args.no_progress,
        },
    )
    results = list(protocol.measure(request))
    if accelerator is not None:
        accelerator.end_training()
    if not first:
        return 0
    settings = {key: value for key, value in vars(args).items() if key not in ("run", "no_progress", "fresh", "out")}
    store.finish({"command": "defective evaluate", **settings}, results)
    if store.reused:
        tell(f"{store.reused} finished measurements were reused (--fresh measures again)")
    return show(args.out, args.out, baseline=args.baseline)


def _attacks(protocol: Protocol, args: argparse.Namespace) -> Sequence[str]:
    """The attacks as texts: that of the subcommand or of its options, those that were named, or the protocol's."""
    if protocol.commands:
        return [f"{args.protocol},{args.options}" if args.options else args.protocol]
    if protocol.attack is not None:
        return [protocol.attack(_options(protocol, args))]
    return getattr(args, "attack", None) or protocol.attacks or ()


def _options(protocol: Protocol, args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given or have a default."""
    values = {option: getattr(args, _flag(option).lstrip("-").replace("-", "_")) for option in protocol.options}
    return {
        option.name: _class_map(value) if option.kind == "class map" else value
        for option, value in values.items()
        if value is not None
    }


def _class_map(path: str) -> list[int | None]:
    try:
        classes = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(f"{path} is no JSON ({error}).", path, "a list of numbers and nulls") from error
    if not isinstance(classes, list) or not all(number is None or isinstance(number, int) for number in classes):
        raise SpecError(f"{path} is no class map.", type(classes).__name__, "a JSON list of numbers and nulls")
    return classes


def _open_images(args: argparse.Namespace, models: Sequence[nn.Module]) -> Any:
    from dcn_plugin.data import open_images

    names = _class_names(models) if args.data.startswith("folder:") else None
    return open_images(args.data, size=args.size, resize=args.resize, limit=args.limit, class_names=names)


def _open_pair(args: argparse.Namespace, models: Sequence[nn.Module]) -> Any:
    from dcn_plugin.data import paired_folders
    from dcn_plugin.data.registry import folder_options

    root, options = folder_options(args.data, ("channels", "class_names", "interpolation"))
    options.setdefault("class_names", _class_names(models))
    return paired_folders(root, args.stylized, size=args.size, resize=args.resize, limit=args.limit, **options)


def _open_cues(args: argparse.Namespace, models: Sequence[nn.Module]) -> Any:
    from dcn_plugin.data import CueConflict
    from dcn_plugin.data.registry import folder_options

    root, options = folder_options(args.data, ("channels", "interpolation"))
    return CueConflict(root, size=args.size, resize=args.resize, limit=args.limit, **options)


def _class_names(models: Sequence[nn.Module]) -> tuple[str, ...] | None:
    """Those of the first model that knows its own: a folder is numbered by them, whichever classes it holds."""
    from dcn_plugin.checkpoint.class_names import class_names_of, telling

    return next(filter(None, [telling(class_names_of(model)) for model in models]), None)


@dataclass(frozen=True)
class _Data:
    """What ``--data`` is, for one kind of data: its help, and what opens it for the models."""

    help: str
    open: Callable[[argparse.Namespace, Sequence[nn.Module]], Any]


_DATA: Mapping[str, _Data] = {
    "images": _Data(_IMAGES, _open_images),
    "pair": _Data("folder of the originals", _open_pair),
    "cues": _Data("folder of the images", _open_cues),
}
_TYPES: Mapping[str, Callable[[str], Any]] = {
    "count": positive,
    "positive": positive_number,
    "probability": probability,
    "radius": radius,
}


@dataclass(frozen=True)
class _Opener:
    """Opens models.

    Args:
        device: where they go.
        tell: gets a line on what was done to each.
        compact: make those that are defective compact.
    """

    device: torch.device
    tell: Callable[[str], None]
    compact: bool

    def models(self, texts: list[str], what: str) -> dict[str, nn.Module]:
        """Open every ``NAME=MODEL``."""
        models = open_models(texts, what, device=self.device, tell=self.tell)
        return {name: self._compacted(name, model) for name, model in models.items()} if self.compact else models

    def sources(self, texts: list[str]) -> dict[str, nn.Module]:
        """Open the sources; one that is written ``A+B`` is the ensemble of the sources named A and B."""
        from dcn_plugin.attacks import EnsembleSource

        groups = [text for text in texts if "+" in text and "=" not in text and "," not in text]
        sources = self.models([text for text in texts if text not in groups], "sources")
        for group in groups:
            names = group.split("+")
            if unknown := [name for name in names if name not in sources]:
                raise SpecError("An ensemble is made of named sources.", unknown, ", ".join(sources))
            sources[group] = EnsembleSource([sources[name] for name in names]).eval()
        return sources

    def _compacted(self, name: str, model: nn.Module) -> nn.Module:
        from dcn_plugin.engine import compact
        from dcn_plugin.surgery import is_defective

        if not is_defective(model):
            self.tell(f"{name}: not defective, stays as it is")
            return model
        compacted = compact(model)
        plan = compacted.plan
        times = f", expected {plan.dense_ms / plan.compact_ms:.1f}x" if plan.dense_ms and plan.compact_ms else ""
        self.tell(f"{name}: compact, backend {plan.backend}{times}" + (f" ({plan.note})" if plan.note else ""))
        return compacted
