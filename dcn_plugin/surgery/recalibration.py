"""Running statistics of norms, estimated anew: what they were measured on is gone once masks silence neurons."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from dcn_plugin.errors import DataError, ImageRangeError, ModelOutputError, SpecError
from dcn_plugin.support.arguments import check_count
from dcn_plugin.support.model_state import device_of, eval_mode
from dcn_plugin.surgery.queries import check_model

__all__ = ["recalibrate"]

_Module = TypeVar("_Module", bound=nn.Module)
_Norm = nn.modules.batchnorm._BatchNorm | nn.modules.instancenorm._InstanceNorm
_Statistics = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def recalibrate(model: _Module, data: Any, *, batch_size: int = 256) -> _Module:
    """Estimate the running statistics of all batch norms anew, in place; no weight is touched.

    Norms keep the mean and variance of activations without masks when masks are put into a trained network. To measure
    them on masked activations takes a pass over some hundred images, and is the cheapest first step from a trained
    network to a defective one; fine-tuning goes further (:class:`dcn_plugin.training.GradualDefects`). It also serves a
    network whose masks were changed, or into which weights without masks were loaded.

    The network is in eval mode but for its norms, so that dropout draws nothing. Batches count by their size. Instance
    norms that keep running statistics are treated alike; norms without any (group, layer) have nothing to estimate.

    Args:
        model: any network of images, defective or not, wrapped or not.
        data: images as the network takes them: a tensor (N, C, H, W); labelled images such as
            :class:`dcn_plugin.data.ImageSet`; or an iterable of batches, e.g. a ``DataLoader``, each a tensor or a
            tuple that starts with one. Augment as little as in the test: nothing is gained by it.
        batch_size: of a tensor or of labelled images; a last batch of a single image is left out.

    Returns:
        ``model`` itself.

    Raises:
        SpecError: ``model`` is no network, or has no running statistics.
        DataError: there are no images.
        ImageRangeError: what ``data`` gives is no batch of floating-point images.
        ModelOutputError: a statistic is not finite. The statistics are the old ones after this and any other error.

    Example:
        >>> masked = dcn.defectify(plain, p=0.5, input_size=(1, 16, 16))
        >>> dcn.recalibrate(masked, data) is masked
        True

    Source: Wu and Johnson 2021, arXiv 2105.07576 ("precise BN"): the mean over batches of their statistics.
    """
    check_model(model)
    norms = [module for module in model.modules() if isinstance(module, _Norm) and module.running_mean is not None]
    if not norms:
        raise SpecError(
            f"{type(model).__name__} has no running statistics that could be estimated anew.",
            sorted({type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__}),
            "batch norms, or instance norms, that track running statistics",
            "a network with other norms measures every image by itself: fine-tune it",
        )
    batches = _batches(data, check_count(batch_size, "batch size"))
    device, seen = device_of(model), 0
    with _restored_after_errors(norms), eval_mode(model), _momentum_of_their_own(norms):
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        for images in batches:
            if seen and len(images) == 1:
                continue
            seen += len(images)
            for norm in norms:
                norm.momentum = len(images) / seen
            model(images.to(device))
        if not seen:
            raise DataError("There are no images to estimate statistics on.", 0, "at least one batch")
        if not all(bool(torch.isfinite(value).all()) for pair in _statistics(norms) for value in pair):
            raise ModelOutputError(
                "A running statistic is not finite.", None, "finite activations", "check images and weights"
            )
    return model


def _batches(data: Any, batch_size: int) -> Iterator[Tensor]:
    if isinstance(data, Tensor):
        parts: Iterable[Any] = data.tensor_split(max(1, math.ceil(len(data) / batch_size))) if len(data) else ()
    elif hasattr(data, "batches"):
        parts = data.batches(batch_size)
    elif isinstance(data, Iterable):
        parts = data
    else:
        raise ImageRangeError(
            "These are no images.",
            type(data).__name__,
            "a tensor (N, C, H, W), labelled images, or an iterable of batches",
        )
    for part in parts:
        images = part[0] if isinstance(part, tuple | list) and part else part
        if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point() or not len(images):
            raise ImageRangeError(
                "A batch of images has the wrong type or shape.",
                f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__,
                "a floating-point tensor (N, C, H, W), N >= 1, or a tuple that starts with one",
            )
        yield images


def _statistics(norms: list[_Norm]) -> _Statistics:
    return [(cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)) for norm in norms]


@contextlib.contextmanager
def _momentum_of_their_own(norms: list[_Norm]) -> Iterator[None]:
    """Give each norm its momentum back afterwards."""
    momenta = [norm.momentum for norm in norms]
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextlib.contextmanager
def _restored_after_errors(norms: list[_Norm]) -> Iterator[None]:
    """Give the old statistics back where something fails."""
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    except BaseException:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        raise
