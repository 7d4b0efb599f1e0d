"""Augmentation of whole batches, with randomness that the caller owns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

__all__ = ["random_shift"]


def random_shift(images: Tensor, pixels: int, *, generator: Generator) -> Tensor:
    """Shift every image by its own random offset, as in "pad, then crop".

    Args:
        images: (N, C, H, W).
        pixels: largest shift in either direction along either axis; 0 returns ``images``.
        generator: a CPU generator.

    Returns:
        (N, C, H, W); what comes in from outside is 0.
    """
    if not pixels:
        return images
    count, _, height, width = images.shape
    padded = F.pad(images, (pixels, pixels, pixels, pixels))
    top, left = torch.randint(0, 2 * pixels + 1, (2, count, 1, 1), generator=generator).to(images.device)
    rows = top + torch.arange(height, device=images.device).view(1, -1, 1)
    columns = left + torch.arange(width, device=images.device).view(1, 1, -1)
    which = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded[which, :, rows, columns].permute(0, 3, 1, 2).contiguous()
