"""Random streams of a training run, and PyTorch's global generators kept out of it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch

__all__ = ["derived_seed", "isolated_rng"]


@contextlib.contextmanager
def isolated_rng(seed: int, *, device: torch.device | None = None) -> Iterator[None]:
    """Seed PyTorch's global generators inside, and give them back as they were.

    For what draws from them and takes no generator: initialisation, dropout. Not for several threads at once.

    Args:
        seed: 0 .. 2**63 - 1.
        device: a CUDA device whose generator is isolated too; without it CUDA is left alone.
    """
    gpu = device if device is not None and device.type == "cuda" else None
    cpu_state = torch.get_rng_state()
    gpu_state = None if gpu is None else torch.cuda.get_rng_state(gpu)
    try:
        # Not torch.manual_seed: that one also reseeds every GPU.
        torch.default_generator.manual_seed(seed)
        if gpu is not None:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if gpu is not None and gpu_state is not None:
            torch.cuda.set_rng_state(gpu_state, gpu)


def derived_seed(*parts: int | str) -> int:
    """One seed from several things: 62 bits of a hash, independent for other parts."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 2
