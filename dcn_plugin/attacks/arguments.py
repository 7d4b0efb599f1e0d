"""Arguments as users write them: NumPy's numbers and 0-d tensors are taken, labels may be lists; else a named error."""

from __future__ import annotations

import contextlib

import numpy as np
import torch
from torch import Tensor, nn

from dcn_plugin.errors import ImageRangeError, LabelError, SpecError

__all__ = ["as_labels", "check_flag", "check_model", "check_types"]


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        SpecError: it is not.
    """
    if not isinstance(value, bool):
        raise SpecError(f"{name} is not usable.", value, "True, False")


def check_model(model: object) -> None:
    """Refuse what is no module.

    Raises:
        SpecError: it is not; the message says what to do with functions, names and estimators.
    """
    if not isinstance(model, nn.Module):
        raise SpecError(
            "An attack needs a network.",
            model if isinstance(model, str) else type(model).__name__,
            "a torch.nn.Module that takes images in [0, 1]",
            "build it (timm.create_model(name)), wrap a function in a module, or take the .model of an ART estimator",
        )


def check_types(images: object) -> None:
    """Refuse images that are no tensor.

    Raises:
        ImageRangeError: they are not; the message says how to make one.
    """
    if isinstance(images, Tensor):
        return
    fix = {
        np.ndarray: "torch.from_numpy(images)",
        list: "torch.stack(images)",
        tuple: "torch.stack(images)",
    }.get(type(images), "attack batch by batch, or hand the whole set to a protocol of dcn_plugin.evaluate")
    raise ImageRangeError("The images are no tensor.", type(images).__name__, "a torch.Tensor (N, C, H, W)", fix)


def as_labels(labels: object, images: Tensor) -> Tensor:
    """Labels as a tensor beside the images; a list, or a NumPy array, of integers is taken.

    Raises:
        LabelError: they are of no such kind.
    """
    if isinstance(labels, list | tuple | np.ndarray | int | np.integer):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):  # what is no number stays, and is refused
            labels = torch.as_tensor(labels)
    if not isinstance(labels, Tensor):
        raise LabelError(
            "The labels are no tensor.", type(labels).__name__, f"integers ({len(images)},), one class number an image"
        )
    return labels.to(images.device)
