"""Random numbers that depend on named things alone, and global generators that are given back as they were."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dcn_plugin.errors import SpecError

__all__ = ["derived_seed", "isolated_global_rngs", "isolated_rng", "philox", "raw_draws", "stream_key"]


def derived_seed(*parts: object) -> int:
    """A seed in [0, 2**62) that follows from its parts and from nothing else, independent for other parts."""
    return _hash("|".join(map(str, parts))) >> 2


def stream_key(purpose: str, seed: int) -> int:
    """The 64-bit key of a purpose's random streams.

    Args:
        purpose: who draws, e.g. "PGD"; other purposes get other numbers from the same seed.
        seed: 0 .. 2**64 - 1.

    Raises:
        SpecError: the seed is out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise SpecError("The seed is not usable.", seed, "an int in [0, 2**64)", "pass e.g. seed=0")
    return _hash(f"{purpose}|{seed}")


def philox(key: int, stream: int) -> np.random.Philox:
    """Philox, a counter-based generator, keyed by two words of 64 bits.

    NumPy keeps the raw output of a bit generator stable over versions, but not what ``Generator`` makes of it.
    """
    return np.random.Philox(key=np.array([key, stream], dtype=np.uint64))


def raw_draws(purpose: str, seed: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    """Draw ``count`` uniform 64-bit integers that are the same for ever.

    Args:
        purpose: as in :func:`stream_key`.
        seed: likewise.
        index: 0 .. 2**64 - 1, e.g. the place of an image in its data set.
        count: how many.

    Raises:
        SpecError: the seed is out of range.
    """
    return philox(stream_key(purpose, seed), index).random_raw(count)


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


@contextlib.contextmanager
def isolated_global_rngs(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and PyTorch (CPU and every CUDA device) inside, and restore them afterwards.

    For libraries that draw from them or reseed them and take no generator. They come back after an exception too. Not
    for several threads at once.

    Args:
        seed: 0 .. 2**32 - 1.
    """
    # NumPy's legacy generator is the one that a library means when it draws from "the" generator.
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    queue = dict(_queued_gpu_seeds())
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        _queued_gpu_seeds().update(queue)


def _queued_gpu_seeds() -> dict[str, Any]:
    # torch.manual_seed also seeds the GPUs. Where CUDA is not initialised yet (and it is not up to us to do that) the
    # seed waits in this queue, and would reseed the caller's GPU later. Private: without it there is nothing to mend.
    queue = getattr(torch.cuda, "_lazy_seed_tracker", None)
    return {} if queue is None else vars(queue)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
