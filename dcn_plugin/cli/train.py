"""``defective train``: train a network, from scratch or from trained weights, and go on where a run was stopped."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcn_plugin.cli.arguments import Commands, add_no_progress, folder, natural, number, positive
from dcn_plugin.cli.defects import add_defects, open_defects
from dcn_plugin.cli.defences import add_defence, open_defence
from dcn_plugin.cli.models import MODELS, WEIGHT_FILES, open_model
from dcn_plugin.cli.processes import launched, open_accelerator
from dcn_plugin.cli.train_data import Data, add_train_data, check_channels, open_train_data, training_device
from dcn_plugin.errors import SpecError
from dcn_plugin.support.named_options import Spec, parse_spec
from dcn_plugin.support.suggestions import closest

if TYPE_CHECKING:
    from torch import nn

    from dcn_plugin.training import TrainConfig, TrainResult

__all__ = ["add", "set_fields"]

_PRESETS = {"fast": "fast", "paper-cifar": "paper_cifar", "paper-mnist": "paper_mnist"}
_TRACKERS = ("tensorboard", "wandb")
# argument -> field of TrainConfig
_FIELDS = {
    "batch_size": "batch_size",
    "lr": "lr",
    "label_smoothing": "label_smoothing",
    "min_scale": "min_scale",
    "ema": "ema_decay",
    "clip": "clip_norm",
    "amp": "amp",
    "channels_last": "channels_last",
    "compile": "compile",
    "engine": "engine",
    "select": "select",
    "seed": "seed",
}


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "train",
        help="train a network, defective or plain",
        description="Train a network. Every finished epoch is kept in --out: a run that was stopped goes on with the "
        "same command and ends with the same weights. Prints the accuracy of the last epoch and of the best one; "
        "writes best.safetensors, last.safetensors, history.json and state.safetensors. Several processes: accelerate "
        "launch -m dcn_plugin.cli train ..., or torchrun -m dcn_plugin.cli train ...",
    )
    parser.add_argument("model", metavar="MODEL", help=f"what to train: {MODELS}")
    add_train_data(parser)
    parser.add_argument("--out", type=folder, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--preset", choices=_PRESETS, default="fast", help="schedule (default: fast, one cycle)")
    parser.add_argument("--epochs", type=positive, metavar="N", help="stretch the schedule over so many epochs")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="images a step, over all processes")
    parser.add_argument("--lr", type=number, metavar="X", help="highest learning rate")
    parser.add_argument("--label-smoothing", type=number, metavar="X", help="as in torch; the paper's 0.9 is 1/9")
    parser.add_argument("--min-scale", type=number, metavar="X", help="random resized crops, e.g. 0.08 for ImageNet")
    parser.add_argument("--ema", type=number, metavar="DECAY", help="average the weights, e.g. 0.999")
    parser.add_argument("--clip", type=number, metavar="NORM", help="clip the gradient")
    parser.add_argument("--amp", action="store_true", default=None, help="compute in bfloat16, where the device has it")
    parser.add_argument("--channels-last", action="store_true", default=None, help="memory format")
    parser.add_argument("--compile", action="store_true", default=None, help="use torch.compile")
    parser.add_argument(
        "--engine",
        choices=("dense", "auto", "c"),
        help="what computes the steps of a defective network: itself (default), or, where that is faster (auto) or "
        "always (c), the engine that skips its defective neurons",
    )
    parser.add_argument("--select", choices=("val", "test", "last"), help="what the best epoch is chosen on")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other field of TrainConfig, e.g. flip=false",
    )
    add_defects(parser)
    add_defence(parser)
    parser.add_argument("--seed", type=natural, metavar="S", help="of weights, order and augmentation (default: 0)")
    parser.add_argument("--device", metavar="DEVICE", help="torch device (default: cuda where there is one, else cpu)")
    parser.add_argument("--track", choices=_TRACKERS, help="also tell a tracker, through Accelerate")
    add_no_progress(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dcn_plugin.support.atomic_file import check_output
    from dcn_plugin.support.randomness import derived_seed
    from dcn_plugin.training import isolated_rng, train
    from dcn_plugin.training.checks import check_fit

    check_output(args.out)
    defects = open_defects(args)
    config = defects.config(_config(args))
    defence = open_defence(args, config)
    data = open_train_data(args, config)
    config = defence.config(config, num_classes=data.train.num_classes)
    accelerator = _accelerator(args, config)
    first = accelerator is None or accelerator.is_main_process

    def tell(line: str) -> None:
        if first:
            print(f"defective: {line}", file=sys.stderr)

    with isolated_rng(derived_seed(config.seed, "weights")):
        model = open_model(defects.spelled(args.model), tell=tell)
    check_channels(args.model, model, data.train.shape[0])
    trained = defence.network(defects.network(model, data.train.shape))
    device = training_device(args.device) if accelerator is None else accelerator.device
    if accelerator is None:
        trained.to(device)
    # Before the hook, which may attack all the images first.
    check_fit(trained, data.train.shape, data.train.num_classes)
    progress = not args.no_progress
    hook = defence.hook(data.train, device=device, accelerator=accelerator, progress=progress, tell=tell)
    result = train(
        trained,
        data.train,
        config,
        val=data.val,
        test=data.test,
        out=args.out,
        step_images=hook,
        accelerator=accelerator,
        about={"model": args.model, **defects.about} | ({"baseline": args.baseline} if args.baseline else {}),
        workers=args.workers,
        progress=progress,
        name=args.model.partition(",")[0],
    )
    if first:
        print(_report(args, result, trained, data))
    if accelerator is not None:
        accelerator.end_training()
    return 0


def _config(args: argparse.Namespace) -> TrainConfig:
    import dataclasses

    from dcn_plugin.training import TrainConfig

    config: TrainConfig = getattr(TrainConfig, _PRESETS[args.preset])()
    changes = set_fields(args.set)
    changes |= {f: getattr(args, name) for name, f in _FIELDS.items() if getattr(args, name) is not None}
    if args.min_scale is not None:
        changes.setdefault("shift", 0)  # the presets shift; a random resized crop does that already
    if args.epochs is not None:
        config = config.lasting(args.epochs)
    return dataclasses.replace(config, **changes)


def set_fields(texts: list[str]) -> dict[str, Any]:
    """Fields of TrainConfig as ``--set KEY=VALUE`` gives them.

    Raises:
        SpecError: there is no such field.
    """
    import dataclasses

    from dcn_plugin.training import TrainConfig

    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    # parse_spec reads "NAME,key=value"; here there are only keys and values.
    changes = dict(parse_spec(",".join(["set", *texts])).options)
    for key in changes:
        if key not in fields:
            raise SpecError(f"TrainConfig has no field {key!r}.", key, ", ".join(fields), closest(key, fields))
    if isinstance(changes.get("milestones"), list):
        changes["milestones"] = tuple(changes["milestones"])
    return changes


def _accelerator(args: argparse.Namespace, config: TrainConfig) -> Any:
    """An Accelerator where several processes were launched, or a tracker is wanted; None otherwise."""
    if not launched() and args.track is None:
        return None
    accelerator = open_accelerator(args.device, tracker=args.track, folder=args.out)
    if args.track is not None:
        import dataclasses

        settings = {key: str(value) for key, value in dataclasses.asdict(config).items()}
        accelerator.init_trackers("defective", config={"model": args.model, "data": args.data, **settings})
    return accelerator


def _report(args: argparse.Namespace, result: TrainResult, model: nn.Module, data: Data) -> str:
    """The table of the last and the best epoch, and how to open the networks."""
    from dcn_plugin.evaluate.predictions import correct_on
    from dcn_plugin.support.table import aligned
    from dcn_plugin.training import load_network

    rows = {"last": (result.history.epochs[-1], Path(args.out) / "last.safetensors")}
    if result.history.best is not None and result.best is not None:
        rows["best"] = (result.history.best, result.best)
    cells = [["network", "epoch", *(f"{figure:>7}" for figure in ("loss", "train", "val", "test"))]]
    for name, (record, path) in rows.items():
        load_network(model, path)
        test = None if data.test is None else float(correct_on(model, data.test).double().mean())
        shares = [record.train_accuracy, record.val_accuracy, test]
        shown = ["-" if share is None else f"{share:.2%}" for share in shares]
        cells.append([name, str(record.epoch + 1), f"{record.loss:.4f}", *shown])
    lines = aligned(cells, "lrrrrr")
    by = result.history.selected_by
    if by is not None:
        lines.append(f"The best epoch is chosen on the {'validation' if by == 'val' else by} set.")
    if by == "test":
        lines.append("Its test accuracy is therefore too good; report that of the last epoch beside it.")
    best_path = rows.get("best", rows["last"])[1]
    lines += ["", f"Network: {best_path}", f"To measure it: --target NAME={_reopen(args.model, model, best_path)}"]
    return "\n".join([*lines, f"Record: {Path(args.out) / 'history.json'}"])


def _reopen(text: str, model: nn.Module, path: Path) -> str:
    """What ``defective evaluate`` opens the trained network with."""
    from dcn_plugin.layers import Normalized
    from dcn_plugin.surgery import is_defective

    spec: Spec = parse_spec(text)
    options: Mapping[str, Any] = spec.options
    if spec.head.endswith(WEIGHT_FILES) or os.path.sep in spec.head:
        return f"{path},model='{options['model']}'" if "model" in options else str(path)
    by_function = ":" in spec.head
    if not is_defective(model):
        return f"{text},{'weights' if by_function else 'checkpoint_path'}={path}"
    if by_function:
        return f"{path},model='{text}'"
    return str(path) if isinstance(model, Normalized) else f"{path},normalize=false"
