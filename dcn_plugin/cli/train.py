"""``defective train``: train a network from scratch, and go on where a run was stopped."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcn_plugin.cli.arguments import Commands, add_no_progress, folder, natural, number, positive, size
from dcn_plugin.cli.defences import add_defence, open_defence
from dcn_plugin.cli.models import MODELS, WEIGHT_FILES, open_model
from dcn_plugin.cli.named_options import Spec, parse_spec
from dcn_plugin.cli.processes import launched, open_accelerator, open_device
from dcn_plugin.errors import SpecError
from dcn_plugin.support.suggestions import closest

if TYPE_CHECKING:
    from torch import nn

    from dcn_plugin.data import DataPart, ImageFiles, ImageSet
    from dcn_plugin.training import TrainConfig, TrainResult

__all__ = ["add"]

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
    parser.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="training images: digits, folder:PATH, npz:FILE, cifar10:ROOT, cifar100:ROOT, mnist:ROOT, "
        "fashionmnist:ROOT, stl10:ROOT or svhn:ROOT, with options behind it, e.g. folder:PATH,channels=1",
    )
    parser.add_argument("--val", metavar="DATA", help="validation images; default: a share of the training images")
    parser.add_argument(
        "--val-share", type=number, default=0.1, metavar="X", help="that share (default: 0.1); 0: no validation"
    )
    parser.add_argument("--test", metavar="DATA", help="test images; default: the test part of a data set that has one")
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
    parser.add_argument("--select", choices=("val", "test", "last"), help="what the best epoch is chosen on")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other field of TrainConfig, e.g. flip=false",
    )
    add_defence(parser)
    parser.add_argument("--seed", type=natural, metavar="S", help="of weights, order and augmentation (default: 0)")
    parser.add_argument(
        "--size", type=size, metavar="PIXELS", help="resize and cut images of a folder to it: a side, or HxW"
    )
    parser.add_argument("--resize", type=positive, metavar="PIXELS", help="shorter side before the cut")
    parser.add_argument("--limit", type=positive, metavar="N", help="use so many training images only")
    parser.add_argument("--device", metavar="DEVICE", help="torch device (default: cuda where there is one, else cpu)")
    parser.add_argument(
        "--workers", type=natural, default=4, metavar="N", help="processes that decode files (default: 4)"
    )
    parser.add_argument("--track", choices=_TRACKERS, help="also tell a tracker, through Accelerate")
    add_no_progress(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dcn_plugin.support.atomic_file import check_output
    from dcn_plugin.support.randomness import derived_seed
    from dcn_plugin.training import isolated_rng, train
    from dcn_plugin.training.checks import check_fit

    check_output(args.out)
    config = _config(args)
    defence = open_defence(args, config)
    data = _open_data(args, config)
    config = defence.config(config, num_classes=data.train.num_classes)
    accelerator = _accelerator(args, config)
    first = accelerator is None or accelerator.is_main_process

    def tell(line: str) -> None:
        if first:
            print(f"defective: {line}", file=sys.stderr)

    with isolated_rng(derived_seed(config.seed, "weights")):
        model = open_model(args.model, tell=tell)
    _check_channels(args.model, model, data.train.shape[0])
    trained = defence.network(model)
    device = _device(args.device) if accelerator is None else accelerator.device
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
        about={"model": args.model} | ({"baseline": args.baseline} if args.baseline else {}),
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
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    # parse_spec reads "NAME,key=value"; here there are only keys and values.
    changes = dict(parse_spec(",".join(["set", *args.set])).options)
    for key in changes:
        if key not in fields:
            raise SpecError(f"TrainConfig has no field {key!r}.", key, ", ".join(fields), closest(key, fields))
    changes |= {f: getattr(args, name) for name, f in _FIELDS.items() if getattr(args, name) is not None}
    if args.min_scale is not None:
        changes.setdefault("shift", 0)  # the presets shift; a random resized crop does that already
    if isinstance(changes.get("milestones"), list):
        changes["milestones"] = tuple(changes["milestones"])
    if args.epochs is not None:
        config = config.lasting(args.epochs)
    return dataclasses.replace(config, **changes)


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


def _device(name: str | None) -> Any:
    import torch

    return open_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(frozen=True)
class _Data:
    train: ImageSet | ImageFiles
    val: ImageSet | ImageFiles | None
    test: ImageSet | ImageFiles | None


def _open_data(args: argparse.Namespace, config: TrainConfig) -> _Data:
    from dcn_plugin.data import open_images
    from dcn_plugin.data.registry import parts_of
    from dcn_plugin.training import split_off
    from dcn_plugin.training.checks import check_parts

    def opened(text: str, part: DataPart, *, like: Any = None) -> Any:
        # Folders are numbered as the training images are, whichever classes they hold.
        names = None if like is None or not text.startswith("folder:") else like.class_names
        limit = args.limit if like is None else None
        return open_images(text, part=part, size=args.size, resize=args.resize, limit=limit, class_names=names)

    if args.val is None and not 0 <= args.val_share < 1:
        raise SpecError("The validation share is not usable.", args.val_share, "a number in [0, 1)")
    train = opened(args.data, "train")
    parts = parts_of(args.data)
    test: Any = None
    if args.test is not None or "test" in parts:
        test = opened(args.test or args.data, "test", like=train)
    elif config.select == "test":
        raise SpecError("This data set has no test part of its own.", args.data, "--test DATA")
    val: Any = None
    if args.val is not None or "val" in parts:
        val = opened(args.val or args.data, "val", like=train)
    elif args.val_share:
        train, val = split_off(train, args.val_share)
    check_parts(train, validation=val, test=test)
    return _Data(train, val, test)


def _check_channels(text: str, model: nn.Module, channels: int) -> None:
    """Timm gives its networks the mean and std of three channels, whatever ``in_chans`` is."""
    from dcn_plugin.layers import Normalized

    if isinstance(model, Normalized) and model.mean.numel() != channels:
        raise SpecError(
            f"The images have {channels} channels, the normalisation of {text} has {model.mean.numel()}.",
            {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()},
            f"{channels} numbers each",
            f"open the images with {model.mean.numel()} channels, e.g. folder:PATH,channels={model.mean.numel()}; or "
            f"write MODEL,in_chans={channels},mean={[0.5] * channels},std={[0.5] * channels} with the constants of "
            "your images, or normalize=false",
        )


def _report(args: argparse.Namespace, result: TrainResult, model: nn.Module, data: _Data) -> str:
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
