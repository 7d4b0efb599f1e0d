"""Whether model, masks and data fit together: before the first step, and after the last."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import check_logits
from dcn_plugin.attacks.checks import described
from dcn_plugin.classes import check_same_names
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import (
    ClassesError,
    DcnError,
    InputSizeError,
    MaskLostError,
    MaskStateError,
    ModelOutputError,
    SpecError,
)
from dcn_plugin.evaluate.environment import device_of
from dcn_plugin.evaluate.fit import refusals
from dcn_plugin.inspection import verify
from dcn_plugin.norms import is_norm
from dcn_plugin.surgery import is_defective, masks_of
from dcn_plugin.trace import dummy_image, eval_mode
from dcn_plugin.training.config import TrainConfig
from dcn_plugin.training.data import TrainData
from dcn_plugin.training.rng import isolated_rng
from dcn_plugin.wrappers import network_in

__all__ = ["check_arguments", "check_fit", "check_masks", "check_parts", "main_head", "masks_hash", "structure"]

_log = logging.getLogger(__name__)


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


@torch.no_grad()
def main_head(model: nn.Module, shape: tuple[int, int, int]) -> Callable[[Any], Tensor] | None:
    """Find the logits in what a model returns in training mode; :func:`check_fit` has checked eval mode.

    Networks with auxiliary heads return several outputs in training, as tuples, named tuples or dicts. Their main head
    is the output that eval mode returns alone. It is found by its values: on one image, in training mode but for
    normalisation and for modules without children (dropout), whatever is not switched by the mode is the same. Where
    something else changes the values, an entry named "logits" or "out" is the main head.

    Args:
        model: see :func:`check_fit`; flags, buffers and global random state come back as they were.
        shape: (C, H, W) of the images.

    Returns:
        A function of what the model returned that gives the logits of its main head; None where it returns these alone.

    Raises:
        InputSizeError: it does not take such images in training mode.
        ModelOutputError: its main head cannot be told.
    """
    network = network_in(model)
    images = dummy_image(network, shape).repeat(2, 1, 1, 1)
    with eval_mode(network):
        expected = network(images)
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers() if buffer.dtype != torch.bool]
    try:
        for module, _ in modes:
            module.training = any(True for _ in module.children()) and not is_norm(module)
        network.training = True
        with isolated_rng(0, device=images.device):
            output = network(images)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, DcnError):
            raise
        raise InputSizeError(
            f"The model does not take the images of this data set in training ({str(error).splitlines()[0]}).",
            shape,
            "images (C, H, W) that the model is made for",
            "give it images of the size it is made for; auxiliary heads often need larger ones",
        ) from error
    finally:
        for module, training in modes:
            module.training = training
        for buffer, value in buffers:
            buffer.copy_(value)
    if isinstance(output, Tensor):
        check_logits(output, count=len(images), finite=False)
        return None
    name = _main_entry(output, expected)
    _log.warning(
        "In training, the model returns %s; it is trained with %s alone, which is what it returns in evaluation.",
        described(output),
        f"output {name}" if isinstance(name, int) else repr(name),
    )
    if isinstance(output, Mapping) or isinstance(name, int):
        return lambda output: output[name]
    return lambda output: getattr(output, name)


def _main_entry(output: object, expected: Tensor) -> str | int:
    """Key, field or place of the entry that is ``expected``."""
    entries: dict[str | int, object] = {}
    if isinstance(output, Mapping):
        entries = dict(output)
    elif isinstance(output, Sequence):
        entries = dict(zip(getattr(output, "_fields", range(len(output))), output, strict=True))
    logits = {name: o for name, o in entries.items() if isinstance(o, Tensor) and o.shape == expected.shape}
    equal = [name for name, value in logits.items() if torch.allclose(value, expected, rtol=1e-4, atol=1e-5)]
    if len(equal) == 1:  # heads that start from zeros are all alike
        return equal[0]
    for name in ("logits", "out"):
        if name in logits:
            return name
    raise ModelOutputError(
        f"In training, the model returns several outputs, and {'none' if not equal else 'more than one'} is what it "
        "returns in evaluation.",
        described(output),
        "a floating-point tensor (N, classes) in both modes, or a tuple or dict that holds the one of evaluation",
        "wrap the model in a module whose forward returns its logits alone, or switch its auxiliary heads off, e.g. "
        "aux_logits=False",
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
