"""The global random generators, seeded for code that draws from them and given back as they were."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["isolated_global_rngs"]


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
