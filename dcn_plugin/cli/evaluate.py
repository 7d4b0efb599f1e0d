"""``defective evaluate PROTOCOL``: measure models of any origin on images of any origin."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dcn_plugin.evaluate import Result, RunDirectory

__all__ = ["add"]

_IMAGES = (
    "images: digits, folder:PATH, npz:FILE, cifar10:ROOT, cifar100:ROOT, cifar10c:ROOT, mnist:ROOT, fashionmnist:ROOT, "
    "stl10:ROOT or svhn:ROOT, with options behind it: channels=1 (grey), class_names=FILE (the classes of the network "
    "where a folder holds some of them, or in another order; also the training folder, or the network's file)"
)


@dataclass(frozen=True)
class _Protocol:
    """One subcommand.

    Args:
        help: one line.
        run: gets what the arguments name.
        sources: it takes ``--source``; "needed" or "optional".
        attacks: the attacks it runs where none is named; None: it takes no ``--attack``.
        more: adds arguments of its own.
        data: what ``--data`` is.
    """

    help: str
    run: Callable[[_Opened], Iterable[Result]]
    sources: str = ""
    attacks: tuple[str, ...] | None = None
    more: Callable[[argparse.ArgumentParser], None] | None = None
    data: str = _IMAGES


@dataclass(frozen=True)
class _Opened:
    """The arguments, with models, attacks and images opened."""

    args: argparse.Namespace
    targets: dict[str, nn.Module]
    sources: dict[str, nn.Module]
    attacks: list[Any]
    store: RunDirectory
    accelerator: Any = None

    @property
    def data(self) -> Any:
        from dcn_plugin.data import open_images

        args = self.args
        names = self.class_names if args.data.startswith("folder:") else None
        return open_images(args.data, size=args.size, resize=args.resize, limit=args.limit, class_names=names)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Those of the first model that knows its own: a folder is numbered by them, whichever classes it holds."""
        from dcn_plugin.checkpoint.class_names import class_names_of, telling

        known = [telling(class_names_of(model)) for model in (*self.targets.values(), *self.sources.values())]
        return next(filter(None, known), None)

    def folder(self, *known: str) -> tuple[str, dict[str, Any]]:
        """``--data`` of a protocol that takes folders alone: ``PATH,key=value``, "folder:" in front of it or not."""
        from dcn_plugin.data.registry import folder_options

        return folder_options(self.args.data, known)

    @property
    def common(self) -> dict[str, Any]:
        args = self.args
        return {
            "seed": args.seed,
            "batch_size": args.batch_size,
            "store": self.store,
            "accelerator": self.accelerator,
            "progress": not args.no_progress,
        }


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "evaluate",
        help="measure models: transfer, white-box, Boundary, noise, shape and texture",
        description="Measure any models on any images with a protocol of the paper. Finished measurements and "
        "adversarial images are kept in --out: a run that was stopped goes on where it was, and a new target meets the "
        "images that are there. Prints tables; writes results.json, report.html and plots. Several processes, started "
        "with accelerate launch -m dcn_plugin.cli evaluate ... or torchrun -m dcn_plugin.cli evaluate ..., share the "
        "images batch by batch and give the same records.",
    )
    protocols = parser.add_subparsers(title="protocols", required=True, metavar="PROTOCOL")
    for name, protocol in _PROTOCOLS.items():
        own = protocols.add_parser(name, help=protocol.help, description=protocol.help)
        own.set_defaults(run=_run, protocol=name)
        own.add_argument(
            "--target",
            action="append",
            required=True,
            metavar="NAME=MODEL",
            help=f"model to measure, again for more: {MODELS}",
        )
        if protocol.sources:
            own.add_argument(
                "--source",
                action="append",
                required=protocol.sources == "needed",
                default=[],
                metavar="NAME=MODEL",
                help="model to attack, again for more, written like a target; A+B names an ensemble of two sources",
            )
        if protocol.attacks is not None:
            own.add_argument(
                "--attack",
                action="append",
                default=[],
                metavar="ATTACK",
                help=f"attack, again for more: {ATTACKS} (default: {' '.join(protocol.attacks)})",
            )
            own.add_argument(
                "--rounding", choices=("none", "8bit"), default="none", help="of adversarial images (default: none)"
            )
        own.add_argument("--data", required=True, metavar="DATA", help=protocol.data)
        own.add_argument(
            "--size", type=size, metavar="PIXELS", help="resize and cut images of a folder to it: a side, or HxW"
        )
        own.add_argument(
            "--resize", type=positive, metavar="PIXELS", help="shorter side before the cut, e.g. 256 for 224"
        )
        own.add_argument("--limit", type=positive, metavar="N", help="measure so many images only (default: all)")
        if protocol.more is not None:
            protocol.more(own)
        own.add_argument("--out", type=folder, required=True, metavar="DIR", help="folder for the results")
        own.add_argument(
            "--seed", type=natural, default=0, metavar="S", help="of the models' training, for the records (default: 0)"
        )
        own.add_argument(
            "--batch-size", type=positive, default=256, metavar="N", help="images at a time (default: 256)"
        )
        own.add_argument(
            "--device",
            default="cpu",
            metavar="DEVICE",
            help="torch device, e.g. cuda (default: cpu; train takes cuda by itself, but a measurement is to repeat "
            "where there is none)",
        )
        own.add_argument(
            "--compact",
            action="store_true",
            help="make defective models compact first: the same outputs up to rounding, faster where it gains",
        )
        own.add_argument("--baseline", metavar="NAME", help="target that the report holds the others against")
        own.add_argument("--fresh", action="store_true", help="measure again what is finished")
        add_no_progress(own)


def _run(args: argparse.Namespace) -> int:
    from dcn_plugin.cli.report import show
    from dcn_plugin.evaluate import RunDirectory

    protocol = _PROTOCOLS[args.protocol]
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
    attacks = open_attacks(getattr(args, "attack", None) or protocol.attacks or ())
    opened = _Opened(args, targets, sources, attacks, store, accelerator)
    results = list(protocol.run(opened))
    if accelerator is not None:
        accelerator.end_training()
    if not first:
        return 0
    options = {key: value for key, value in vars(args).items() if key not in ("run", "no_progress", "fresh", "out")}
    store.finish({"command": "defective evaluate", **options}, results)
    if store.reused:
        tell(f"{store.reused} finished measurements were reused (--fresh measures again)")
    return show(args.out, args.out, baseline=args.baseline)


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
        opened = open_models(texts, what, device=self.device, tell=self.tell)
        return {name: self._compacted(name, model) for name, model in opened.items()} if self.compact else opened

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
        made = compact(model)
        plan = made.plan
        times = f", expected {plan.dense_ms / plan.compact_ms:.1f}x" if plan.dense_ms and plan.compact_ms else ""
        self.tell(f"{name}: compact, backend {plan.backend}{times}" + (f" ({plan.note})" if plan.note else ""))
        return made


def _matrix(name: str) -> Callable[[_Opened], Iterable[Result]]:
    def run(opened: _Opened) -> Iterable[Result]:
        from dcn_plugin import evaluate

        protocol = evaluate.transfer if name == "transfer" else evaluate.tapm
        return protocol(
            opened.sources,
            opened.targets,
            opened.attacks,
            opened.data,
            rounding=opened.args.rounding,
            **opened.common,
        )

    return run


def _whitebox(opened: _Opened) -> Iterable[Result]:
    from dcn_plugin.evaluate import whitebox

    return whitebox(opened.targets, opened.attacks, opened.data, rounding=opened.args.rounding, **opened.common)


def _distance(attack: str) -> _Protocol:
    def run(opened: _Opened) -> Iterable[Result]:
        from dcn_plugin.evaluate import minimal_distance

        (made,) = open_attacks([f"{attack},{opened.args.options}" if opened.args.options else attack])
        return minimal_distance(opened.targets, made, opened.data, count=opened.args.count, **opened.common)

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--count", type=positive, default=500, metavar="N", help="images the target has right (default: 500)"
        )
        parser.add_argument(
            "--options", default="", metavar="KEY=VALUE,...", help="of the attack, e.g. max_queries=1000"
        )

    return _Protocol(f"median distance to the nearest image that {attack} finds", run, more=more)


def _gaussian(opened: _Opened) -> Iterable[Result]:
    from dcn_plugin.evaluate import gaussian

    args = opened.args
    if args.sigma and args.noise == "clipped":
        raise SpecError(
            "Clipped noise is told by its largest change eps; its sigma is eps / 2.",
            {"sigma": args.sigma},
            f"--level {' --level '.join(f'{2 * sigma:g}' for sigma in args.sigma)}",
        )
    levels = [*(args.level or ()), *(args.sigma or ())]
    return gaussian(opened.targets, opened.data, levels or [0.1, 0.2, 0.3], noise=args.noise, **opened.common)


def _gaussian_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--level",
        action="append",
        type=positive_number,
        metavar="X",
        help="strength, again for more, in the unit of images in [0, 1], e.g. 0.1 or 16/255: the standard deviation "
        "sigma of plain noise, the largest change eps of clipped noise (default: 0.1, 0.2 and 0.3)",
    )
    parser.add_argument(
        "--sigma",
        action="append",
        type=positive_number,
        metavar="X",
        help="the same as --level, for plain noise; of clipped noise sigma is eps / 2, so that --level says it",
    )
    parser.add_argument(
        "--noise",
        choices=("plain", "clipped"),
        default="plain",
        help="clipped: sigma = eps / 2, cut at +-eps, the paper's (default: plain)",
    )


def _shuffle(opened: _Opened) -> Iterable[Result]:
    from dcn_plugin.evaluate import shuffle

    ks, confidence = opened.args.k or [2, 4, 8], opened.args.confidence
    return shuffle(opened.targets, opened.data, ks, confidence=confidence, **opened.common)


def _shuffle_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-k", action="append", type=positive, metavar="K", help="a K x K grid; default: 2, 4, 8")
    parser.add_argument(
        "--confidence",
        type=probability,
        default=0.99,
        metavar="P",
        help="least softmax that counts (default: 0.99, the paper's)",
    )


def _amplitude(opened: _Opened) -> Iterable[Result]:
    from dcn_plugin.evaluate import amplitude

    return amplitude(opened.targets, opened.data, **opened.common)


def _stylized(opened: _Opened) -> Iterable[Result]:
    from dcn_plugin.data import paired_folders
    from dcn_plugin.evaluate import stylized

    args = opened.args
    root, options = opened.folder("channels", "class_names", "interpolation")
    options.setdefault("class_names", opened.class_names)
    pair = paired_folders(root, args.stylized, size=args.size, resize=args.resize, limit=args.limit, **options)
    return stylized(opened.targets, *pair, **opened.common)


def _stylized_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stylized", required=True, metavar="DIR", help="the stylised images, in the same layout")


def _cue_conflict(opened: _Opened) -> Iterable[Result]:
    from dcn_plugin.data import CueConflict
    from dcn_plugin.evaluate import cue_conflict

    args = opened.args
    root, options = opened.folder("channels", "interpolation")
    data = CueConflict(root, size=args.size, resize=args.resize, limit=args.limit, **options)
    return cue_conflict(opened.targets, data, class_map=_class_map(args.class_map), **opened.common)


def _cue_conflict_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--class-map",
        metavar="FILE",
        help="JSON list: for each class of the models the number of its cue class, or null; default: they are the same",
    )


def _class_map(path: str | None) -> list[int | None] | None:
    import json
    from pathlib import Path

    if path is None:
        return None
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpecError(f"{path} is no JSON ({error}).", path, "a list of numbers and nulls") from error
    if not isinstance(found, list) or not all(item is None or isinstance(item, int) for item in found):
        raise SpecError(f"{path} is no class map.", type(found).__name__, "a JSON list of numbers and nulls")
    return found


def _sanity(opened: _Opened) -> Iterable[Result]:
    from dcn_plugin.evaluate import sanity

    data = opened.data
    for name, target in opened.targets.items():
        yield from sanity(
            target,
            data,
            eps=opened.args.eps,
            steps=opened.args.steps,
            sources=opened.sources,
            name=name,
            **opened.common,
        )


def _sanity_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--eps", type=radius, default=8 / 255, metavar="X", help="radius, e.g. 16/255 (default: 8/255)")
    parser.add_argument(
        "--steps",
        type=positive,
        default=40,
        metavar="N",
        help="of PGD (default: 40; twice those of --attack pgd, so that few steps are no reason for a warning)",
    )


_TRANSFER_ATTACKS = ("pgd,eps=8/255",)
_PROTOCOLS: dict[str, _Protocol] = {
    "transfer": _Protocol(
        "transfer matrix: images made on every source, shown to every target",
        _matrix("transfer"),
        "needed",
        _TRANSFER_ATTACKS,
    ),
    "tapm": _Protocol(
        "accuracy under the worst of all sources and attacks, image by image",
        _matrix("tapm"),
        "needed",
        ("modern,eps=8/255",),
    ),
    "whitebox": _Protocol("every target attacked on itself", _whitebox, attacks=_TRANSFER_ATTACKS),
    "boundary": _distance("boundary"),
    "hopskipjump": _distance("hopskipjump"),
    "cw": _distance("cw"),
    "gaussian": _Protocol("Gaussian noise", _gaussian, more=_gaussian_arguments),
    "shuffle": _Protocol("shuffled patches", _shuffle, more=_shuffle_arguments),
    "amplitude": _Protocol("phase of one image, Fourier amplitude of another", _amplitude),
    "stylized": _Protocol(
        "stylised images (Stylized-ImageNet's layout)",
        _stylized,
        more=_stylized_arguments,
        data="folder of the originals",
    ),
    "cue-conflict": _Protocol(
        "shape bias on cue-conflict images (model-vs-human's naming)",
        _cue_conflict,
        more=_cue_conflict_arguments,
        data="folder of the images",
    ),
    "sanity": _Protocol("warning signs of gradient masking", _sanity, "optional", more=_sanity_arguments),
}
