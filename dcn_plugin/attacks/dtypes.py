"""Half precision: attacks walk in float32, and show the network what it takes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["as_input", "model_dtype", "rounded", "walking_dtype"]

_HALF = (torch.float16, torch.bfloat16)
_KNOWN = (*_HALF, torch.float32, torch.float64)


def model_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype that a model takes: its ``input_dtype`` if it says so, or that of all its floating-point parameters.

    Returns:
        None if it does not say so, and its parameters have several dtypes or there are none.
    """
    declared = getattr(model, "input_dtype", None)
    if declared in _KNOWN:
        return declared  # type: ignore[no-any-return]
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    return dtype if dtype in _KNOWN else None


def as_input(images: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Images in the dtype that a model computes in, or as they are where that is None."""
    return images if dtype is None else images.to(dtype)


def walking_dtype(dtype: torch.dtype) -> torch.dtype:
    """What an attack on images of this dtype computes in: half precision loses steps of 1/255."""
    return torch.float32 if dtype in _HALF else dtype


def rounded(adversarial: Tensor, clean: Tensor, *, eps: float | None, norm: str) -> Tensor:
    """Round adversarial images to the dtype of the clean ones, without leaving the ball.

    A pixel is rounded to the nearest value. In an L-inf ball one that would leave it goes to the next value towards
    the clean pixel, in an L2 ball every one that would be further away than before.

    Args:
        adversarial: (N, C, H, W) in [0, 1].
        clean: likewise, of the dtype to round to.
        eps: radius of the ball; None: there is none.
        norm: of the ball, "linf" or "l2".

    Returns:
        Images of the dtype of ``clean``.
    """
    if adversarial.dtype == clean.dtype:
        return adversarial
    # Adding zero turns -0 into 0: from there on the bits of a number grow with it.
    nearest = adversarial.to(clean.dtype) + 0
    if eps is None:
        return nearest
    start = clean.to(adversarial.dtype)
    moved = nearest.to(adversarial.dtype) - start
    allowed = (adversarial - start).abs() if norm == "l2" else torch.full_like(start, eps)
    bits = nearest.view(torch.int16) - moved.sign().to(torch.int16)
    return torch.where(moved.abs() > allowed, bits.view(clean.dtype), nearest)
