"""PCA colour augmentation: every image is shifted along the principal axes of ImageNet's colours."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from dcn_plugin.errors import SpecError

__all__ = ["EIGENVALUES", "EIGENVECTORS", "check_colored", "draw_colors", "shift_colors"]

EIGENVALUES = (0.2175, 0.0188, 0.0045)
"""Of the covariance of ImageNet's RGB values, for images in [0, 1], the largest first."""
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
"""The axes are its columns, in the order of :data:`EIGENVALUES`; its rows are red, green and blue."""


def draw_colors(count: int, *, std: float, generator: Generator) -> Tensor:
    """Draw what is added to the red, green and blue of each of ``count`` images.

    Args:
        count: number of images.
        std: standard deviation of the factor of each axis; 0.1 in the source.
        generator: a CPU generator.

    Returns:
        float32 (count, 3): the sum over the axes of factor * eigenvalue * eigenvector.

    Source: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks", section 4.1. It
    prints no eigenvalues; these are those of fb.resnet.torch, which its successors share.
    """
    factors = std * torch.randn(count, 3, generator=generator)
    return factors * torch.tensor(EIGENVALUES) @ torch.tensor(EIGENVECTORS).T


def shift_colors(images: Tensor, colors: Tensor) -> Tensor:
    """Add a colour to every image.

    Args:
        images: float (N, 3, H, W) in [0, 1].
        colors: (N, 3), on any device.

    Returns:
        (N, 3, H, W), clipped to [0, 1]: images stay images. (The source, which does not say, may have left them.)
    """
    return (images + colors.to(images.device, images.dtype)[:, :, None, None]).clamp_(0, 1)


def check_colored(shape: tuple[int, int, int], std: float) -> None:
    """Check that images have colours to shift, where that is asked for.

    Args:
        shape: (C, H, W) of the images.
        std: see :func:`draw_colors`; 0 asks for nothing.

    Raises:
        SpecError: they are not RGB.
    """
    if std and shape[0] != 3:
        raise SpecError("pca_color shifts the colours of RGB images.", shape, "(3, H, W)", "train with pca_color=0")
