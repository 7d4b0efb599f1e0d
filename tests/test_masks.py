"""Sampling of masks: the invariants, and the exact bits of scheme 1."""

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcn_plugin.errors import MaskShapeError, SpecError
from dcn_plugin.masks import sample_mask
from dcn_plugin.specs import MaskSpec

keep = st.floats(min_value=0.01, max_value=1)
modes = st.sampled_from(["neuron", "channel", "shared"])
shapes = st.tuples(st.integers(1, 24), st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 2**64 - 1)
sites = st.integers(0, 10_000)

# mode, sampling -> SHA-256 of the bits of a (16, 9, 7) mask at p = 0.3, seed 2019, site 3 under mask scheme 1.
# A change here changes every user's masks: it needs a new scheme number, not a new hash.
GOLDEN = {
    ("neuron", "bernoulli"): "642e6b6e596f8cea752a024dc6726c5d487d1bab78dbf7b37da5d0f399dc1f33",
    ("neuron", "exact"): "dfb0dfa5be652299c4f1043d4e7cac7d60387e80294308eb775ac0785fa60ef1",
    ("channel", "bernoulli"): "b4c1df07d763d3edec289c0fc54c9e3007fd59e4c5b55c2edacceb7450ebdd0e",
    ("channel", "exact"): "cc32b7fbb2127fad1d643dfc561da0c3312e025e2b6dd8f095d528a6129891e5",
    ("shared", "bernoulli"): "0d91296917344afacf4952ece4f38582daefad78e2e84b3f96d419d5a8d63205",
    ("shared", "exact"): "797bfbd33e7c48b2eca8dccf5dcf89b83d1823d72de4fe1d69848daf6adedef1",
}


def drawn(mask: torch.Tensor, mode: str) -> torch.Tensor:
    """The independent entries of a mask, flat."""
    return {"neuron": mask, "channel": mask[:, 0, 0], "shared": mask[0]}[mode].flatten()


def digest(mask: torch.Tensor) -> str:
    return hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()


@given(keep, modes, st.sampled_from(["bernoulli", "exact"]), shapes, seeds, sites)
def test_a_mask_is_bool_of_its_shape_and_repeats_what_its_mode_shares(p, mode, sampling, shape, seed, site) -> None:
    mask = sample_mask(MaskSpec(p, mode, sampling, seed), shape, site=site)
    assert mask.dtype is torch.bool and tuple(mask.shape) == shape and mask.is_contiguous()
    if mode == "channel":
        assert torch.equal(mask, mask[:, :1, :1].expand(shape))
    if mode == "shared":
        assert torch.equal(mask, mask[:1].expand(shape))


@given(keep, modes, shapes, seeds, sites)
def test_exact_sampling_zeroes_exactly_the_rounded_share(p, mode, shape, seed, site) -> None:
    entries = drawn(sample_mask(MaskSpec(p, mode, "exact", seed), shape, site=site), mode)
    assert int((~entries).sum()) == round((1 - p) * entries.numel())


@given(st.floats(0.05, 1), modes, seeds, sites)
@settings(max_examples=60)
def test_bernoulli_density_lies_within_binomial_bounds(p, mode, seed, site) -> None:
    entries = drawn(sample_mask(MaskSpec(p, mode, "bernoulli", seed), (2000, 48, 48), site=site), mode)
    sigma = math.sqrt(entries.numel() * p * (1 - p))
    assert abs(int(entries.sum()) - p * entries.numel()) <= 6 * sigma + 1e-9


@given(seeds, sites, st.sampled_from(["bernoulli", "exact"]))
@settings(max_examples=40)
def test_channels_and_sites_and_seeds_agree_no_more_than_chance(seed, site, sampling) -> None:
    shape = (32, 40, 40)
    spec = MaskSpec(0.5, "neuron", sampling, seed)
    here = sample_mask(spec, shape, site=site)
    others = [
        here.roll(1, dims=0),  # the next channel of the same mask
        sample_mask(spec, shape, site=site + 1),
        sample_mask(MaskSpec(0.5, "neuron", sampling, seed ^ 1), shape, site=site),
    ]
    for other in others:
        agree = int((here == other).sum())
        assert abs(agree - here.numel() / 2) <= 6 * math.sqrt(here.numel() / 4)


@given(keep, modes, st.sampled_from(["bernoulli", "exact"]), shapes, seeds, sites)
def test_same_seed_gives_bit_equal_masks_and_touches_no_global_generator(p, mode, sampling, shape, seed, site) -> None:
    before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002  (the global one is what matters)
    spec = MaskSpec(p, mode, sampling, seed)
    assert torch.equal(sample_mask(spec, shape, site=site), sample_mask(spec, shape, site=site))
    assert torch.equal(torch.get_rng_state(), before[0]) and repr(np.random.get_state()) == before[1]  # noqa: NPY002


@given(modes, st.sampled_from(["bernoulli", "exact"]), shapes, seeds, sites)
def test_p_one_keeps_all(mode, sampling, shape, seed, site) -> None:
    assert bool(sample_mask(MaskSpec(1, mode, sampling, seed), shape, site=site).all())


@given(seeds, sites, st.floats(0.05, 0.9))
def test_a_larger_p_keeps_what_a_smaller_one_keeps(seed, site, p) -> None:
    few = sample_mask(MaskSpec(p, seed=seed), (4, 9, 9), site=site)
    more = sample_mask(MaskSpec(p + 0.1, seed=seed), (4, 9, 9), site=site)
    assert not bool((few & ~more).any())


@pytest.mark.parametrize(("mode", "sampling"), GOLDEN)
def test_the_bits_of_scheme_1_are_the_ones_on_record(mode, sampling) -> None:
    mask = sample_mask(MaskSpec(0.3, mode, sampling, seed=2019), (16, 9, 7), site=3)
    assert digest(mask) == GOLDEN[mode, sampling]


def philox(key: tuple[int, int], count: int) -> list[int]:
    """Philox 4x64-10 written out (Salmon et al. 2011): the stream that scheme 1 is made of."""
    words: list[int] = []
    counter = 0
    while len(words) < count:
        counter += 1
        x, (k0, k1) = [counter, 0, 0, 0], key
        for _ in range(10):
            left, right = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
            x = [(right >> 64) ^ x[1] ^ k0, right % 2**64, (left >> 64) ^ x[3] ^ k1, left % 2**64]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) % 2**64, (k1 + 0xBB67AE8584CAA73B) % 2**64
        words += x
    return words[:count]


@given(keep, shapes, seeds, sites)
@settings(max_examples=25)
def test_the_bits_are_those_of_the_generator_written_out(p, shape, seed, site) -> None:
    words = philox((seed, site), math.prod(shape))
    bernoulli = [(word >> 11) / 2**53 < p for word in words]
    assert sample_mask(MaskSpec(p, seed=seed), shape, site=site).flatten().tolist() == bernoulli
    dead = sorted(range(len(words)), key=lambda i: (words[i], i))[: round((1 - p) * len(words))]
    exact = sample_mask(MaskSpec(p, sampling="exact", seed=seed), shape, site=site).flatten()
    assert (~exact).nonzero().flatten().tolist() == sorted(dead)


def test_another_process_with_other_threads_draws_the_same_bits() -> None:
    code = (
        "import torch; torch.set_num_threads(2); torch.manual_seed(99);"
        "from tests.test_masks import digest; from dcn_plugin import MaskSpec, sample_mask;"
        "print(digest(sample_mask(MaskSpec(0.3, seed=5), (64, 32, 32), site=7)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    other = done.stdout.strip()
    assert other == digest(sample_mask(MaskSpec(0.3, seed=5), (64, 32, 32), site=7))


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 4), (4, 4, 4, 4), (4, -1, 4), (4, 4.0, 4)])
def test_a_bad_shape_is_refused_by_name(shape) -> None:
    with pytest.raises(MaskShapeError, match=r"three integers >= 1"):
        sample_mask(MaskSpec(), shape, site=0)


@pytest.mark.parametrize("site", [-1, 2**64, 1.0, True])
def test_a_bad_site_is_refused_by_name(site) -> None:
    with pytest.raises(SpecError, match="ordinal"):
        sample_mask(MaskSpec(), (4, 4, 4), site=site)
