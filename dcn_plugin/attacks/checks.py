"""Checks at the border: images, labels and logits, each with an error that says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dcn_plugin.errors import ImageRangeError, LabelError, ModelOutputError, warn_caller

__all__ = ["check_answers", "check_images", "check_labels", "check_logits", "described", "warn_if_probabilities"]


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_images(images: Tensor) -> None:
    """Check that images are floating point (N, C, H, W), N >= 1, within [0, 1].

    Raises:
        ImageRangeError: they are not.
    """
    if not images.is_floating_point() or images.ndim != 4 or not len(images):
        raise ImageRangeError(
            "These are no images that can be attacked.",
            (str(images.dtype), tuple(images.shape)),
            "floating point (N, C, H, W) with N >= 1",
            "convert 8-bit images with images.float() / 255; add the batch dimension with images[None]",
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ImageRangeError(
            "The images leave the range of pixels.",
            (low, high),
            "[0, 1]",
            "divide 8-bit images by 255; put normalisation inside the model with dcn_plugin.Normalized",
        )


def check_labels(labels: Tensor, *, count: int, num_classes: int | None = None) -> None:
    """Check that labels are integers (N,) and, where the number of classes is known, in range.

    Raises:
        LabelError: they are not.
    """
    integer = not labels.is_floating_point() and not labels.is_complex() and labels.dtype != torch.bool
    if not integer or labels.shape != (count,):
        raise LabelError(
            "The labels have the wrong type or shape.",
            (str(labels.dtype), tuple(labels.shape)),
            f"integers ({count},), one class number an image",
            _label_advice(labels),
        )
    numbers = labels.long()  # torch finds no extremes of unsigned integers
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        raise LabelError(
            "The labels are out of range.",
            (low, high),
            "0 .. " + ("classes" if num_classes is None else str(num_classes)) + " - 1",
            "number the classes from 0, as the model's logits are",
        )


def _label_advice(labels: Tensor) -> str:
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "take the column as it is: labels.flatten()"
    if labels.ndim == 2:
        return "turn one-hot labels into numbers with labels.argmax(1)"
    return "class numbers as integers, labels.long(), one for each image"


def check_logits(logits: object, *, count: int, finite: bool = True) -> Tensor:
    """Check that a model returned finite (N, classes) logits, of two classes or more.

    Args:
        logits: what it returned.
        count: N, the number of images it was asked about.
        finite: check the values too, which waits for the device; without it only type and shape.

    Returns:
        ``logits``, now known to be a tensor.

    Raises:
        ModelOutputError: it returned something else.
    """
    if not isinstance(logits, Tensor):
        raise ModelOutputError(
            "The model does not return logits alone.",
            described(logits),
            f"a floating-point tensor ({count}, classes)",
            "wrap the model in a module whose forward returns the logits, e.g. model(images)" + _entry(logits),
        )
    if logits.is_floating_point() and logits.shape in ((count,), (count, 1)):
        raise ModelOutputError(
            "The model returns one number an image and none for another class, as networks of two classes do that are "
            "trained with a sigmoid.",
            (str(logits.dtype), tuple(logits.shape)),
            f"2 or more logits an image, one a class: ({count}, 2)",
            "make it two logits: with z = model(images).flatten(), return torch.stack([torch.zeros_like(z), z], "
            "dim=1); the softmax of the second is the sigmoid of z",
        )
    if logits.ndim != 2 or len(logits) != count or not logits.is_floating_point():
        raise ModelOutputError(
            "The model does not return logits.",
            (str(logits.dtype), tuple(logits.shape)),
            f"a floating-point tensor ({count}, classes)",
            "wrap the model so that it returns its logits alone",
        )
    if finite and not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits).all(dim=1)).sum())
        raise ModelOutputError(
            f"The model's logits are not finite for {bad} of {count} images.",
            "NaN or infinity",
            "finite logits",
            "check the weights, and the range of the images the model was trained on",
        )
    return logits


def described(output: object) -> str:
    """What a model returned that is no tensor, in a few words: its type, and its entries with their shapes."""
    kind = type(output).__name__
    if isinstance(output, Mapping):
        entries = [f"{key}: {_shape(value)}" for key, value in output.items()]
    elif isinstance(output, Sequence) and not isinstance(output, str):
        names = getattr(output, "_fields", [""] * len(output))
        entries = [f"{name}: {_shape(value)}".removeprefix(": ") for name, value in zip(names, output, strict=True)]
    else:
        return kind
    return f"{kind} of {', '.join(entries)}"


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _entry(output: object) -> str:
    """How to take the logits out of what a model returned, by the names that torchvision and others give them."""
    fields = getattr(output, "_fields", ())
    for name in ("logits", "out"):
        if isinstance(output, Mapping) and name in output:
            return f"[{name!r}]"
        if name in fields or (not isinstance(output, Mapping) and hasattr(output, name)):
            return f".{name}"
    return "[0]"


def check_answers(answers: object, *, count: int) -> Tensor:
    """Check that a model returned decisions: finite (N, classes) logits, or integers (N,), the classes themselves.

    Returns:
        ``answers``, now known to be a tensor.

    Raises:
        ModelOutputError: it returned something else.
    """
    if isinstance(answers, Tensor) and answers.ndim == 1 and answers.dtype in _INTEGERS and len(answers) == count:
        return answers
    return check_logits(answers, count=count)


def warn_if_probabilities(logits: Tensor, *, name: str) -> None:
    """Warn if rows are non-negative and sum to 1: gradient attacks on probabilities look weaker than they are."""
    if bool((logits >= 0).all()) and bool(((logits.float().sum(dim=1) - 1).abs() < 1e-3).all()):
        warn_caller(
            f"{name} seems to return probabilities, not logits: every row is non-negative and sums to 1. "
            "Attacks on its gradient look weaker than they are. Remove the final softmax.",
        )
