"""Whether model, masks and data fit together: before the first step, and after the last."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import torch
from torch import nn

from dcn_plugin.attacks import check_logits
from dcn_plugin.checkpoint.class_names import check_same_names
from dcn_plugin.checkpoint.train_config import TrainConfig
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import (
    ClassesError,
    MaskLostError,
    MaskStateError,
    SpecError,
)
from dcn_plugin.evaluate.data_checks import refusals
from dcn_plugin.support.model_state import device_of, dummy_image, eval_mode
from dcn_plugin.surgery import is_defective, masks_of
from dcn_plugin.surgery.inspection import verify
from dcn_plugin.training.data import TrainData

__all__ = ["check_arguments", "check_fit", "check_masks", "check_parts", "masks_hash", "structure"]


def check_arguments(config: TrainConfig, count: int, processes: int, test: object) -> None:
    """Check that there is enough to train on, that a batch can be shared out, and that a choice has its images.

    Args:
        config: of the run.
        count: number of training images.
        processes: how many train together.
        test: the test set, or None.

    Raises:
        SpecError: there is too little to train on or to share out, or the choice has no images.
    """
    if count < 2:
        raise SpecError("There is too little to train on.", count, "at least two images")
    if processes > 1 and (config.batch_size % processes or config.batch_size < 2 * processes):
        raise SpecError(
            "The batch cannot be shared out.",
            {"batch_size": config.batch_size, "processes": processes},
            "a multiple of the number of processes, at least two images for each",
        )
    if processes > 1 and count < config.batch_size:
        raise SpecError("There is less than one batch to share out.", count, f"batch_size {config.batch_size} images")
    if config.select == "test" and test is None:
        raise SpecError("select='test' needs the test set.", None, "test=...", "pass it, or choose on val")


@torch.no_grad()
def check_fit(model: nn.Module, shape: tuple[int, int, int], num_classes: int) -> None:
    """Run a model on one image and check that it takes it and has the classes of the data.

    Args:
        model: it is run in eval mode; all flags are restored.
        shape: (C, H, W) of the images.
        num_classes: of the data.

    Raises:
        MaskShapeError: its masks are made for images of another size.
        InputSizeError: it does not take such images for another reason.
        ModelOutputError: it does not return logits.
        ClassesError: it has another number of classes.
    """
    image = torch.zeros(1, *shape, device=device_of(model))
    with refusals(model, shape), eval_mode(model):
        logits = model(image)
    classes = check_logits(logits, count=1, finite=False).shape[1]
    if classes != num_classes:
        raise ClassesError(
            f"The model has {classes} classes, the data have {num_classes}.",
            classes,
            str(num_classes),
            f"build the model with num_classes={num_classes}",
        )


def check_parts(train: LabelledImages | TrainData, **others: LabelledImages | None) -> None:
    """Check that the images a network is measured on are of the kind it is trained on.

    Args:
        train: the training images.
        others: e.g. ``val`` and ``test``; None is passed over.

    Raises:
        ClassesError: other classes, by number, name or order.
        SpecError: images of another shape.
    """
    for part, data in others.items():
        if data is None:
            continue
        if data.num_classes != train.num_classes or data.shape != train.shape:
            wrong = SpecError if data.num_classes == train.num_classes else ClassesError
            raise wrong(
                f"The {part} images are of another kind than the training images.",
                {"classes": data.num_classes, "shape": data.shape},
                f"{train.num_classes} classes, shape {train.shape}",
                "number them as the training images: class_names= of image folders takes the training folder",
            )
        check_same_names(
            getattr(data, "class_names", None),
            getattr(train, "class_names", None),
            what=f"the {part} images {data.name!r}",
            of=f"the training images {train.name!r}",
            fix="open both with the same class_names=; of image folders it takes the training folder",
        )


def masks_hash(model: nn.Module) -> str:
    """SHA-256 in hex over the place, shape and bits of every mask; "" without one."""
    if not is_defective(model):
        return ""
    masks, digest = masks_of(model), hashlib.sha256()
    for name in sorted(masks):
        bits = masks[name].mask.cpu()
        digest.update(f"{name} {tuple(bits.shape)}".encode() + bits.contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_masks(
    expected: str,
    found: Iterable[str],
    model: nn.Module | None = None,
    shape: tuple[int, int, int] | None = None,
) -> None:
    """Check that masks are the same everywhere and, given a model, that they act.

    Args:
        expected: :func:`masks_hash` at the start.
        found: of all processes at the start, or of the model at the end.
        model: the trained one.
        shape: (C, H, W) of its images.

    Raises:
        MaskStateError: processes have different masks.
        MaskLostError: training changed a mask, or one does not act any more.
    """
    if any(digest != expected for digest in found):
        if model is None:
            raise MaskStateError(
                "The processes have different masks.", list(found), "one seed", "make the model with the same seed"
            )
        raise MaskLostError("The masks are not those that the training began with.", None, "masks that never change")
    if model is not None and shape is not None and expected:
        verify(model, dummy_image(model, shape))


def structure(model: nn.Module) -> str:
    """SHA-256 in hex over the modules, their options, and the shapes of the parameters."""
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    shapes = [(name, tuple(value.shape), str(value.dtype)) for name, value in model.state_dict().items()]
    return hashlib.sha256(f"{type(model).__qualname__} {text} {shapes}".encode()).hexdigest()
