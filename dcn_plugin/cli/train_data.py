"""The images that a network is trained and measured on, as the subcommands that train take them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcn_plugin.cli.arguments import natural, number, positive, size
from dcn_plugin.cli.processes import open_device
from dcn_plugin.errors import SpecError

if TYPE_CHECKING:
    from torch import nn

    from dcn_plugin.data import DataPart, ImageFiles, ImageSet
    from dcn_plugin.training import TrainConfig

__all__ = ["Data", "add_train_data", "check_channels", "open_train_data", "training_device"]


def add_train_data(parser: argparse.ArgumentParser) -> None:
    """The arguments."""
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
    parser.add_argument(
        "--size", type=size, metavar="PIXELS", help="resize and cut images of a folder to it: a side, or HxW"
    )
    parser.add_argument("--resize", type=positive, metavar="PIXELS", help="shorter side before the cut")
    parser.add_argument("--limit", type=positive, metavar="N", help="use so many training images only")
    parser.add_argument(
        "--workers", type=natural, default=4, metavar="N", help="processes that decode files (default: 4)"
    )


@dataclass(frozen=True)
class Data:
    """Images of one kind, in parts."""

    train: ImageSet | ImageFiles
    val: ImageSet | ImageFiles | None
    test: ImageSet | ImageFiles | None


def open_train_data(args: argparse.Namespace, config: TrainConfig) -> Data:
    """Open what the arguments name, and split off a validation part where there is none.

    Raises:
        SpecError: the parts do not fit each other, or one that is needed is missing.
        DataError: images are missing.
    """
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
    return Data(train, val, test)


def check_channels(text: str, model: nn.Module, channels: int) -> None:
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


def training_device(name: str | None) -> Any:
    """The device of a name; without one the GPU, where there is one."""
    import torch

    return open_device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
