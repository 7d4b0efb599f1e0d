"""Patch shuffle: the local texture of an image without its shape."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dcn_plugin.errors import SpecError
from dcn_plugin.support.arguments import check_count
from dcn_plugin.support.randomness import raw_draws

__all__ = ["patch_permutations", "patch_shuffle"]


def patch_permutations(count: int, k: int, *, seed: int = 0, first_index: int = 0) -> Tensor:
    """One random permutation of a k x k grid an image.

    Each is uniform over all (k * k)! permutations, so that one in 24 leaves an image as it is at k = 2.

    Args:
        count: number of images.
        k: patches along either axis, >= 1.
        seed: 0 .. 2**64 - 1.
        first_index: place of the first image in its data set. An image's permutation depends on (seed, k, place)
            alone, whatever batch it comes in.

    Returns:
        int64 (count, k * k): entry [n, i] is the patch of image n that moves to place i; patches are counted row
        by row.

    Raises:
        SpecError: k, seed or index out of range.
    """
    check_count(k, "number of patches along an axis")
    if first_index < 0:
        raise SpecError("The index of an image is negative.", first_index, "an int >= 0")
    rows = [raw_draws(f"patch_shuffle|{k}", seed, first_index + row, k * k) for row in range(count)]
    return torch.from_numpy(np.argsort(np.array(rows).reshape(count, k * k), axis=1, kind="stable"))


def patch_shuffle(images: Tensor, k: int, *, seed: int = 0, first_index: int = 0) -> Tensor:
    """Cut each image into a k x k grid of patches and permute them, all channels alike.

    Args:
        images: (N, C, H, W) of any dtype, H and W multiples of ``k``.
        k: patches along either axis; 1 gives back equal images. The paper uses 2, 4 and 8.
        seed: see :func:`patch_permutations`.
        first_index: place of ``images[0]`` in its data set.

    Returns:
        (N, C, H, W), a copy.

    Raises:
        SpecError: ``images`` is not (N, C, H, W) or its sides are no multiples of ``k``.

    Source: paper, section 3.2 and appendix A.8 ("randomly shuffled images").
    """
    if images.ndim != 4:
        raise SpecError("The images to shuffle have the wrong shape.", tuple(images.shape), "(N, C, H, W)")
    count, channels, height, width = images.shape
    order = patch_permutations(count, k, seed=seed, first_index=first_index).to(images.device)
    if height % k or width % k:
        raise SpecError(
            f"A {height} x {width} image cannot be cut into {k} x {k} equal patches.",
            k,
            "a divisor of height and width",
            "choose another k, or resize the images",
        )
    patches = images.reshape(count, channels, k, height // k, k, width // k).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = patches[torch.arange(count, device=images.device).unsqueeze(1), order]
    grid = moved.reshape(count, k, k, channels, height // k, width // k).permute(0, 3, 1, 4, 2, 5)
    return grid.reshape(count, channels, height, width)
