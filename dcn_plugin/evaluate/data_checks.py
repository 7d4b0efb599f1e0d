"""Whether models and images fit each other, checked before anything is measured."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import EnsembleSource
from dcn_plugin.attacks.checks import check_answers, check_logits
from dcn_plugin.attacks.dtypes import as_input, model_dtype
from dcn_plugin.checkpoint.class_names import check_same_names, class_names_of
from dcn_plugin.data import LabelledImages
from dcn_plugin.errors import ClassesError, DcnError, ImageRangeError, InputSizeError
from dcn_plugin.support.model_state import device_of, eval_mode
from dcn_plugin.surgery.wrappers import network_in

__all__ = ["check_all_names", "check_count", "check_fit", "check_fits", "check_names", "refusals"]

# What networks raise on images that they are not made for: timm's and torchvision's ViTs assert.
_REFUSALS = (RuntimeError, AssertionError, IndexError, ValueError)


def check_fits(data: LabelledImages, *groups: Mapping[str, nn.Module]) -> None:
    """:func:`check_fit` for each of several models by name; a model that occurs twice is checked once."""
    models: list[nn.Module] = []
    for name, model in itertools.chain.from_iterable(group.items() for group in groups):
        if not any(model is other for other in models):
            check_fit(model, data, name=name)
            models.append(model)


def check_fit(model: nn.Module, data: LabelledImages, *, name: str = "", classes: bool = True) -> int | None:
    """Check that a model takes the images of a set, and that its logits stand for the same classes.

    Names are compared first, where both tell them; then the model is asked about one black image. The global random
    state stays as it is.

    Args:
        model: images in [0, 1] -> logits, or decisions (N,). It is run in eval mode; all flags are restored.
        data: the images; none is read.
        name: of the model, for messages; its class by default.
        classes: whether its classes have to be those of the data.

    Returns:
        How many logits it has; None of a model that returns decisions.

    Raises:
        ClassesError: it has other classes, by name, order or number.
        InputSizeError: it does not take images of this size or number of channels.
        MaskShapeError: its masks are made for images of another size.
        ModelOutputError: it returns neither logits nor decisions.
    """
    if classes:
        check_names(model, data, name=name)
    with refusals(model, data.shape, name=name):
        answer = _ask(model, data.shape)
    if isinstance(answer, Tensor) and not answer.is_floating_point():
        check_answers(answer, count=1)
        return None
    count = check_logits(answer, count=1, finite=False).shape[1]
    if classes:
        check_count(model, count, data, name=name)
    return count


def check_all_names(data: LabelledImages, *groups: Mapping[str, nn.Module]) -> None:
    """:func:`check_names` for each of several models by name.

    It asks no model, so that it comes before finished records are looked up: they are found by weights, not by names.
    """
    for name, model in itertools.chain.from_iterable(group.items() for group in groups):
        check_names(model, data, name=name)


def check_names(model: nn.Module, data: LabelledImages, *, name: str = "") -> None:
    """Compare class names, where the model (or a member of an ensemble) and the data tell them.

    Raises:
        ClassesError: label k of the data is another class than logit k of the model.
    """
    inner = network_in(model)
    for member in inner.models if isinstance(inner, EnsembleSource) else [model]:
        check_same_names(
            getattr(data, "class_names", None),
            class_names_of(member),
            what=f"the images {data.name!r}",
            of=f"the network {_called(model, name)!r}",
        )


def check_count(model: nn.Module, count: int, data: LabelledImages, *, name: str = "") -> None:
    """Check that a model has as many logits as the data have classes.

    Raises:
        ClassesError: it has more or fewer.
    """
    if count != data.num_classes:
        raise ClassesError(
            f"The network {_called(model, name)!r} has {count} logits, the images {data.name!r} have "
            f"{data.num_classes} classes: label k need not be logit k.",
            {"logits": count, "classes": data.num_classes},
            "one logit a class",
            "say which classes the network knows: class_names= of image folders (folder:PATH,class_names=FILE on the "
            f"command line), num_classes={count} of archives and ImageSet whose labels are the network's own numbers; "
            f"or build it with num_classes={data.num_classes}",
        )


@contextlib.contextmanager
def refusals(model: nn.Module, shape: tuple[int, int, int], *, name: str = "") -> Iterator[None]:
    """Turn what a model raises on images that it is not made for into a named error.

    Args:
        model: that is run inside.
        shape: (C, H, W) of the images.
        name: of the model, for the message.

    Raises:
        InputSizeError: the model refused.
    """
    try:
        yield
    except _REFUSALS as error:
        # Normalized raises ImageRangeError for another number of channels; the rest of our errors say enough.
        named = isinstance(error, DcnError) and not isinstance(error, ImageRangeError)
        if named or isinstance(error, torch.OutOfMemoryError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputSizeError(
            f"The network {_called(model, name)!r} does not take the images of this data set ({reason}).",
            shape,
            "images (C, H, W) that the network is made for",
            _advice(model, shape),
        ) from error


def _advice(model: nn.Module, shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    other = {1: 3, 3: 1}.get(channels)
    with contextlib.suppress(*_REFUSALS, DcnError):
        if other is not None:
            _ask(model, (other, height, width))
            return (
                f"it takes images of {other} channel{'s' if other > 1 else ''}: open them with channels={other} "
                f"(folder:PATH,channels={other} on the command line), or build it with in_chans={channels}"
            )
    size = height if height == width else (height, width)
    return (
        "open images of its size (size= of image folders, --size on the command line), or build it for them, in timm "
        f"with in_chans={channels} and img_size={size}"
    )


@torch.no_grad()
def _ask(model: nn.Module, shape: tuple[int, int, int]) -> object:
    """The model's output for one black image."""
    device = device_of(model)
    image = torch.zeros(1, *shape, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), eval_mode(model):
        answer: object = model(as_input(image, model_dtype(model)))
    return answer


def _called(model: nn.Module, name: str) -> str:
    return name or type(network_in(model)).__name__
