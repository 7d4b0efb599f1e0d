from __future__ import annotations

import pytest
import torch

from dcn_plugin.support.randomness import derived_seed
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
