"""What a model says about a set of images, batch by batch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import check_labels, check_logits, warn_if_probabilities
from dcn_plugin.attacks.batch_independence import warn_if_mixed
from dcn_plugin.attacks.dtypes import as_input, model_dtype
from dcn_plugin.data import LabelledImages
from dcn_plugin.engine import CompactModel
from dcn_plugin.evaluate.data_checks import check_count, check_names, refusals
from dcn_plugin.evaluate.sharding import own_batches
from dcn_plugin.support.environment import hardware
from dcn_plugin.support.model_state import device_of, eval_mode
from dcn_plugin.support.processes import ALONE, Part, Team, whole

__all__ = ["correct", "correct_on", "logits_of", "predict", "ran_on"]


def ran_on(model: nn.Module, *, source: nn.Module | None = None) -> Mapping[str, str | int | None]:
    """The machine, for a record, and where a model was compact what computed its neurons.

    Args:
        model: that was measured.
        source: that was attacked, if it is another one.

    Returns:
        :func:`hardware`; with "engine", and "source_engine", if the one or the other is compact or holds compact ones,
        and "dtype", and "source_dtype", if the one or the other does not compute in float32.
    """
    engines = {"engine": _engine(model), "source_engine": None if source is None else _engine(source)}
    dtypes = {"dtype": _dtype(model), "source_dtype": None if source is None else _dtype(source)}
    return {**hardware(device_of(model)), **{key: how for key, how in (engines | dtypes).items() if how is not None}}


def _engine(model: nn.Module) -> str | None:
    backends = {module.plan.backend for module in model.modules() if isinstance(module, CompactModel)}
    return f"compact, {' and '.join(sorted(backends))}" if backends else None


def _dtype(model: nn.Module) -> str | None:
    dtype = model_dtype(model)
    return None if dtype in (None, torch.float32) else str(dtype).removeprefix("torch.")


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, *, batch_size: int = 256, name: str = "") -> Tensor:
    """What a model says about images, in eval mode; all training flags are restored.

    Args:
        model: images in [0, 1] -> logits.
        images: (N, C, H, W), N >= 1; batches move to the model's device, and to the dtype of its parameters.
        batch_size: images at a time.
        name: of the model, for warnings; its class by default.

    Returns:
        Finite logits (N, classes) on the CPU.

    Raises:
        ModelOutputError: the model does not return finite (N, classes) logits.
    """
    device, dtype = device_of(model), model_dtype(model)
    batches: list[Tensor] = []
    with eval_mode(model):
        for batch in images.split(batch_size):
            logits = check_logits(model(as_input(batch.to(device), dtype)), count=len(batch))
            if not batches:
                warn_if_probabilities(logits, name=name or type(model).__name__)
                warn_if_mixed(model, as_input(batch[:1].to(device), dtype), name=name)
            batches.append(logits.cpu())
    return torch.cat(batches)


def predict(model: nn.Module, images: Tensor, *, batch_size: int = 256, name: str = "") -> tuple[Tensor, int]:
    """Classify images; arguments and errors are those of :func:`logits_of`.

    Returns:
        int64 (N,) on the CPU, the class of the largest logit, and the number of classes.
    """
    logits = logits_of(model, images, batch_size=batch_size, name=name)
    return logits.argmax(dim=1), logits.shape[1]


def correct(model: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 256, name: str = "") -> Tensor:
    """Tell which images a model classifies correctly: bool (N,) on the CPU.

    Args:
        model: images in [0, 1] -> logits.
        images: float (N, C, H, W) in [0, 1].
        labels: int64 (N,), the true classes.
        batch_size: images at a time.
        name: of the model, for messages.

    Raises:
        LabelError: a label is beyond the model's classes.
        ModelOutputError: the model does not return finite (N, classes) logits.
    """
    classes, num_classes = predict(model, images, batch_size=batch_size, name=name)
    check_labels(labels, count=len(images), num_classes=num_classes)
    return classes == labels.cpu().long()


def correct_on(
    model: nn.Module, data: LabelledImages, *, batch_size: int = 256, name: str = "", team: Team = ALONE
) -> Tensor:
    """Tell which images of a set a model classifies correctly: bool (N,) on the CPU, one batch in memory at a time.

    Args:
        model: images in [0, 1] -> logits.
        data: the images with their classes.
        batch_size: images at a time.
        name: of the model, for messages.
        team: processes that share the images; each gets the whole answer.

    Raises:
        LabelError, ModelOutputError: as :func:`correct` does.
        ClassesError: the model's classes are not those of the data, by name, order or number.
        InputSizeError: it does not take such images.
    """
    check_names(model, data, name=name)
    parts: list[Part] = []
    for first, images, labels in own_batches(data, batch_size, team):
        with contextlib.nullcontext() if parts else refusals(model, data.shape, name=name):
            classes, count = predict(model, images, batch_size=batch_size, name=name)
        check_count(model, count, data, name=name)
        check_labels(labels, count=len(images), num_classes=count)
        parts.append((first, (classes == labels.cpu().long(),)))
    (flags,) = whole(parts, team)
    return flags
