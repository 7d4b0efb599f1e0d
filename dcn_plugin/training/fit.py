"""Whether model, masks and data fit together: before the first step, and after the last."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import torch
from torch import nn

from dcn_plugin.attacks import check_logits
from dcn_plugin.errors import DcnError, InputSizeError, MaskLostError, MaskStateError, SpecError
from dcn_plugin.evaluate.predict import device_of
from dcn_plugin.inspection import verify
from dcn_plugin.surgery import is_defective, masks_of
from dcn_plugin.trace import dummy_image, eval_mode
from dcn_plugin.training.config import TrainConfig

__all__ = ["check_arguments", "check_fit", "check_masks", "masks_hash", "structure"]


def check_arguments(config: TrainConfig, count: int, processes: int, test: object) -> None:
    """Check that there is enough to train on, that a batch can be shared out, and that a choice has its images.

    Args:
        config: of the run.
        count: number of training images.
        processes: how many train together.
        test: the test set, or None.

    Raises:
        SpecError: it is not so.
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
        SpecError: it has another number of classes.
    """
    image = torch.zeros(1, *shape, device=device_of(model))
    try:
        with eval_mode(model):
            logits = model(image)
    except DcnError:
        raise
    except RuntimeError as error:
        raise InputSizeError(
            f"The model does not take the images of this data set ({str(error).splitlines()[0]}).",
            shape,
            "images (C, H, W) that the model is made for",
            "build it for them, in timm with in_chans= and img_size=",
        ) from error
    classes = check_logits(logits, count=1, finite=False).shape[1]
    if classes != num_classes:
        raise SpecError(
            f"The model has {classes} classes, the data have {num_classes}.",
            classes,
            str(num_classes),
            f"build the model with num_classes={num_classes}",
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
    if any(one != expected for one in found):
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
