from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from dcn_plugin.adapters._global_rngs import isolated_global_rngs


def states() -> tuple[Any, ...]:
    """Every global generator, and the seed that waits for a GPU."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    gpus = [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_initialized() else []
    queued = dict(vars(torch.cuda._lazy_seed_tracker))
    return random.getstate(), repr(numpy_state), torch.get_rng_state().tolist(), gpus, queued


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


def test_the_same_seed_gives_the_same_draws_and_another_one_gives_others() -> None:
    found = []
    for seed in (7, 7, 8):
        with isolated_global_rngs(seed):
            found.append(draws())
    assert found[0] == found[1]
    assert all(a != b for a, b in zip(found[0], found[2], strict=True))


@pytest.mark.parametrize("raises", [False, True])
def test_all_generators_come_back_whatever_happens_inside(raises: bool) -> None:
    before = states()
    with pytest.raises(RuntimeError) if raises else isolated_global_rngs(1), isolated_global_rngs(3):
        draws()
        torch.manual_seed(5)
        torch.cuda.manual_seed(5)
        if raises:
            raise RuntimeError("injected")
    assert states() == before


@pytest.mark.gpu
def test_the_generators_of_the_gpus_come_back() -> None:
    torch.cuda.init()
    before = torch.cuda.get_rng_state_all()
    with isolated_global_rngs(3):
        first = torch.rand(3, device="cuda")
    with isolated_global_rngs(3):
        again = torch.rand(3, device="cuda")
    assert torch.equal(first, again)
    assert all(map(torch.equal, torch.cuda.get_rng_state_all(), before))
