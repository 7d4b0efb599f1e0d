from __future__ import annotations

import hashlib
import random
from typing import Any

import numpy as np
import pytest
import torch

from dcn_plugin.errors import SpecError
from dcn_plugin.support.randomness import derived_seed, isolated_global_rngs, philox, raw_draws, stream_key
from dcn_plugin.training import isolated_rng


def test_isolated_rng_seeds_inside_and_restores_after_an_exception() -> None:
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with pytest.raises(RuntimeError, match="injected"), isolated_rng(3):
            draws.append(torch.rand(3))
            raise RuntimeError("injected")
        torch.rand(1)
        torch.set_rng_state(before)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_derived_seeds_differ_with_every_part() -> None:
    seeds = {derived_seed(*parts) for parts in ((0, "a"), (1, "a"), (0, "b"), (0, "a", 0), ())}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**62 for seed in seeds)


def test_a_derived_seed_is_the_same_for_ever() -> None:
    # Of runs that are kept: of the demo and the training loop, and of a recipe's network, which joined their own parts.
    assert derived_seed("demo", 0, "target", "weights") == 877_544_349_307_522_645
    assert derived_seed(7, "model", 3, 1) == 1_990_817_556_843_325_159
    text = "weights|2|resnet18|-1"
    joined = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 2
    assert derived_seed("weights", 2, "resnet18", -1) == joined


def test_raw_draws_are_those_of_philox_under_the_hash_of_purpose_and_seed() -> None:
    key = int.from_bytes(hashlib.blake2b(b"amplitude_partners|5", digest_size=8).digest(), "little")
    expected = np.random.Philox(key=np.array([key, 2**64 - 1], dtype=np.uint64)).random_raw(4)
    assert stream_key("amplitude_partners", 5) == key
    assert raw_draws("amplitude_partners", 5, 2**64 - 1, 4).tolist() == expected.tolist()
    assert philox(0, 0).random_raw(2).tolist() == [213000021201967259, 4455796210202625458]


@pytest.mark.parametrize("seed", [-1, 2**64, True, 0.0])
def test_a_seed_out_of_range_is_refused(seed: Any) -> None:
    with pytest.raises(SpecError, match=r"seed is not usable.*pass e\.g\. seed=0"):
        raw_draws("purpose", seed, 0, 1)


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
