"""In which precision a network is trained."""

from __future__ import annotations

import functools
import logging

import torch

__all__ = ["autocast", "compute_dtype", "has_bfloat16"]

_log = logging.getLogger(__name__)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16.

    PyTorch computes in it on every device, but where there are none it is emulated: in the forward and backward pass of
    a convolutional network on an AVX2 processor, many times slower than float32.

    Args:
        device: any; of others than CUDA and x86 processors it is not known, and False.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def compute_dtype(amp: bool, device: torch.device) -> torch.dtype:
    """The dtype that the expensive operators of a training step compute in: see ``TrainConfig.amp``.

    Args:
        amp: as in the configuration.
        device: of the model.
    """
    if amp and has_bfloat16(device):
        return torch.bfloat16
    if amp:
        _tell(device.type)
    return torch.float32


def autocast(amp: bool, device: torch.device) -> torch.autocast:
    """A context in which a training step computes in :func:`compute_dtype`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute_dtype(amp, device) is torch.bfloat16)


@functools.cache
def _tell(device: str) -> None:
    """Say it, but not for every network of a long run."""
    _log.warning("amp: no instructions for bfloat16 on this %s; training in float32, which is faster", device)
