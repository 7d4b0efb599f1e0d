"""Random bits that are the same for ever: raw Philox output, keyed by purpose, seed and index."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from dcn_plugin.errors import SpecError

__all__ = ["raw_draws"]


def raw_draws(purpose: str, seed: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    """Draw ``count`` uniform 64-bit integers from the stream of one (purpose, seed, index).

    NumPy keeps the raw output of a bit generator stable over versions, but not what ``Generator`` makes of it.

    Args:
        purpose: who draws; other purposes get other numbers from the same seed.
        seed: 0 .. 2**64 - 1.
        index: 0 .. 2**64 - 1, e.g. the place of an image in its data set.
        count: how many.

    Raises:
        SpecError: the seed is out of range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
        raise SpecError("The seed is not usable.", seed, "an int in [0, 2**64)", "pass e.g. seed=0")
    domain = hashlib.blake2b(f"{purpose}|{seed}".encode(), digest_size=8).digest()
    key = np.array([int.from_bytes(domain, "little"), index], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(count)
