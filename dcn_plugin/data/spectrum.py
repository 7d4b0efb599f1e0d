"""Amplitude swap: the shape of one image (its Fourier phase) with the texture of another (its amplitude)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.support.randomness import raw_draws

__all__ = ["AmplitudeSwap", "amplitude_partners", "amplitude_swap"]

# Relative to the largest coefficient of an image: below it there is rounding, whose phase means nothing and
# differs between FFT libraries.
_NOTHING = 1e-10


@dataclass(frozen=True, eq=False)
class AmplitudeSwap:
    """Images that have the phase of one image and the amplitude of another.

    Args:
        images: (N, C, H, W) in [0, 1].
        clipped: float64 (N,), the share of an image's values that left [0, 1] and were clipped. Where it is large,
            the amplitude is no longer quite the partner's.
    """

    images: Tensor
    clipped: Tensor


def amplitude_swap(images: Tensor, amplitude_from: Tensor) -> AmplitudeSwap:
    """Give each image the Fourier amplitude of another, channel by channel, and keep its phase.

    The amplitude at frequency 0 is the mean: brightness and colour cast come from the partner as well. Where
    an image has no energy at all, its phase counts as 0.

    Args:
        images: float (N, C, H, W) in [0, 1]; their phase is kept.
        amplitude_from: as ``images``, of the same shape.

    Returns:
        The images clipped to [0, 1], of the dtype of ``images``; computed in float64.

    Raises:
        SpecError: the two are not float (N, C, H, W) of one shape.

    Source: Oppenheim and Lim 1981 (phase carries the shape); Chen et al. 2021, "Amplitude-phase recombination".
    """
    if images.ndim != 4 or images.shape != amplitude_from.shape or not images.is_floating_point():
        raise SpecError(
            "The images to swap do not fit each other.",
            (str(images.dtype), tuple(images.shape), tuple(amplitude_from.shape)),
            "two float tensors (N, C, H, W) of one shape",
        )
    height, width = images.shape[-2:]
    spectrum = torch.fft.rfft2(images.double())
    size = spectrum.abs()
    phase = torch.where(size > _NOTHING * size.amax(dim=(-2, -1), keepdim=True), spectrum.angle(), 0.0)
    amplitude = torch.fft.rfft2(amplitude_from.double()).abs()
    mixed = torch.fft.irfft2(torch.polar(amplitude, phase), s=(height, width))
    outside = (mixed < -_NOTHING) | (mixed > 1 + _NOTHING)
    return AmplitudeSwap(mixed.clamp(0, 1).to(images.dtype), outside.flatten(1).double().mean(dim=1))


def amplitude_partners(labels: Tensor, *, seed: int = 0) -> Tensor:
    """Choose for each image of a data set another one, of another class, whose amplitude it gets.

    The choice is over the whole set: it does not depend on the batch size, nor on classes being mixed within a
    batch (an image folder is sorted by class). A streaming evaluator needs memory for two batches::

        partners, start = amplitude_partners(data.labels), 0
        for images, labels in data.batches(64):
            swapped = amplitude_swap(images, data.take(partners[start : start + len(images)]))
            start += len(images)

    Args:
        labels: int64 (N,) of the whole data set.
        seed: 0 .. 2**64 - 1.

    Returns:
        int64 (N,): index of the partner, uniform over all images of other classes.

    Raises:
        DataError: all images are of one class.
    """
    order = labels.cpu().argsort(stable=True)  # the images, class by class
    classes, place, sizes = labels.cpu().unique(return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise DataError("No image has a partner: all are of one class.", classes.tolist(), "images of two classes")
    first, class_size = (sizes.cumsum(0) - sizes)[place], sizes[place]
    draws = raw_draws("amplitude_partners", seed, 0, len(labels))
    # The share of 2**64 that the remainder favours is below 2**-32 for any data set.
    others = (len(labels) - class_size).numpy().astype(draws.dtype)
    chosen = torch.from_numpy((draws % others).astype("int64"))
    return order[torch.where(chosen < first, chosen, chosen + class_size)]
