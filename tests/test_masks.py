"""Sampling of masks: the invariants, and the exact bits of scheme 1."""

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dcn_plugin.errors import MaskShapeError, SpecError
from dcn_plugin.masks import mask_draws, sample_mask
from dcn_plugin.specs import MaskSpec, Mode, Sampling

keep = st.floats(min_value=0.01, max_value=1)
modes = st.sampled_from(["neuron", "channel", "shared"])  # those that draw entries one by one, by either rule
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
    ("hole", "bernoulli"): "722f845413a76d1148ac38f5828834677209552aec937ee4b48547e472c305b2",
    ("nm", "bernoulli"): "8af34089bee58848eab9168cd07d99ad8c823588006f4354680e2000701042e8",
}
GOLDEN_SPANS = {"hole": 3, "nm": 10}


@st.composite
def nm_specs(draw: st.DrawFn) -> MaskSpec:
    m = draw(st.integers(1, 12))
    return MaskSpec(draw(st.integers(1, m)) / m, "nm", seed=draw(seeds), span=m)


hole_specs = st.builds(MaskSpec, keep, st.just("hole"), seed=seeds, span=st.integers(1, 9))
entry_specs = st.builds(MaskSpec, keep, modes, st.sampled_from(["bernoulli", "exact"]), seeds)
specs = st.one_of(entry_specs, hole_specs, nm_specs())


def drawn(mask: torch.Tensor, mode: str, span: int | None = None) -> torch.Tensor:
    """Independent entries of a mask, flat: one a hole's size apart, one a group."""
    return {
        "neuron": mask,
        "channel": mask[:, 0, 0],
        "shared": mask[0],
        "hole": mask[:, ::span, ::span],
        "nm": mask[::span],
    }[mode].flatten()


def digest(mask: torch.Tensor) -> str:
    return hashlib.sha256(np.packbits(mask.numpy()).tobytes()).hexdigest()


@given(specs, shapes, sites)
def test_a_mask_is_bool_of_its_shape_and_repeats_what_its_mode_shares(spec, shape, site) -> None:
    mask = sample_mask(spec, shape, site=site)
    assert mask.dtype is torch.bool and tuple(mask.shape) == shape and mask.is_contiguous()
    if spec.mode == "channel":
        assert torch.equal(mask, mask[:, :1, :1].expand(shape))
    if spec.mode == "shared":
        assert torch.equal(mask, mask[:1].expand(shape))


@given(keep, modes, shapes, seeds, sites)
def test_exact_sampling_zeroes_exactly_the_rounded_share(p, mode, shape, seed, site) -> None:
    entries = drawn(sample_mask(MaskSpec(p, mode, "exact", seed), shape, site=site), mode)
    assert int((~entries).sum()) == round((1 - p) * entries.numel())


def assert_binomial(entries: torch.Tensor, p: float) -> None:
    """Independent entries (...); along the first dimension each column holds with probability p.

    Bernstein's bound, which a column leaves with a probability below 2e-9: unlike 6 sigma it is one where p is near 1.
    """
    count, log = entries.shape[0], math.log(1e9)
    bound = log / 3 + math.sqrt(log**2 / 9 + 2 * log * count * p * (1 - p))
    assert bool(((entries.sum(0) - p * count).abs() <= bound + 1e-6).all())


@given(st.floats(0.05, 1), modes, seeds, sites)
@settings(max_examples=60)
def test_bernoulli_density_lies_within_binomial_bounds(p, mode, seed, site) -> None:
    entries = drawn(sample_mask(MaskSpec(p, mode, "bernoulli", seed), (2000, 48, 48), site=site), mode)
    assert_binomial(entries, p)


@given(st.floats(0.05, 1), st.integers(1, 7), seeds, sites)
@example(p=0.99999, span=1, seed=889, site=1)
@settings(max_examples=30)
def test_with_holes_every_position_keeps_its_share_corners_and_borders_too(p, span, seed, site) -> None:
    mask = sample_mask(MaskSpec(p, "hole", seed=seed, span=span), (4000, 9, 6), site=site)
    assert_binomial(mask, p)  # channels are independent of each other
    assert_binomial(drawn(mask, "hole", span), p)


@given(nm_specs(), st.integers(1, 30), sites)
@settings(max_examples=30)
def test_with_patterns_every_channel_keeps_its_share_those_of_a_cut_group_too(spec, channels, site) -> None:
    mask = sample_mask(spec, (channels, 64, 64), site=site)
    assert_binomial(mask.flatten(1).T, spec.p)  # positions are independent of each other


@given(hole_specs, shapes, sites)
def test_every_dead_neuron_lies_in_a_hole_that_is_whole_or_cut_by_the_border(spec, shape, site) -> None:
    (_, height, width), b = shape, spec.span
    dead = ~sample_mask(spec, shape, site=site)
    covered = torch.zeros_like(dead)
    for top in range(1 - b, height):
        for left in range(1 - b, width):
            window = (slice(None), slice(max(top, 0), top + b), slice(max(left, 0), left + b))
            whole = dead[window].flatten(1).all(1)
            covered[window] |= whole[:, None, None]
    assert torch.equal(covered, dead)


def test_holes_of_one_pixel_are_the_papers_mask() -> None:
    hole, neuron = MaskSpec(0.3, "hole", seed=4, span=1), MaskSpec(0.3, "neuron", seed=4)
    assert torch.equal(sample_mask(hole, (6, 9, 7), site=2), sample_mask(neuron, (6, 9, 7), site=2))


@given(nm_specs(), shapes, sites)
def test_of_every_m_channels_exactly_n_are_kept_and_a_cut_group_has_at_most_as_many_of_either_kind(
    spec, shape, site
) -> None:
    n, m = spec.pattern
    groups = sample_mask(spec, shape, site=site).split(m)
    for group in groups:
        kept = group.sum(0)
        if len(group) == m:
            assert bool((kept == n).all())
        assert bool((kept <= n).all()) and bool((len(group) - kept <= m - n).all())


@given(seeds, sites)
@settings(max_examples=20)
def test_all_patterns_of_a_group_are_equally_likely(seed, site) -> None:
    mask = sample_mask(MaskSpec(0.5, "nm", seed=seed, span=4), (4, 120, 120), site=site)
    codes = (mask.flatten(1).T.long() * torch.tensor([1, 2, 4, 8])).sum(1)
    seen = torch.bincount(codes, minlength=16)
    possible = [code for code in range(16) if code.bit_count() == 2]
    assert int(seen[possible].sum()) == mask[0].numel()
    assert_binomial(torch.stack([codes == code for code in possible], dim=1), 1 / 6)


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


@given(
    st.sampled_from([MaskSpec(0.5, "hole", span=3), MaskSpec(0.5, "nm", span=4), MaskSpec(0.5, "nm", span=2)]),
    seeds,
    sites,
)
@settings(max_examples=40)
def test_holes_and_patterns_of_other_channels_groups_sites_and_seeds_agree_no_more_than_chance(
    like, seed, site
) -> None:
    shape = (48, 40, 40)
    spec = replace(like, seed=seed)
    mask = sample_mask(spec, shape, site=site)
    here = drawn(mask, spec.mode, spec.span)
    others = [
        mask.roll(spec.span, dims=0),  # another channel, of another group
        mask.roll((spec.span, spec.span), dims=(1, 2)),  # another place
        sample_mask(spec, shape, site=site + 1),
        sample_mask(replace(spec, seed=seed ^ 1), shape, site=site),
    ]
    for other in others:
        agree = int((here == drawn(other, spec.mode, spec.span)).sum())
        assert abs(agree - here.numel() / 2) <= 6 * math.sqrt(here.numel() / 4)


@given(specs, shapes, sites)
def test_same_seed_gives_bit_equal_masks_and_touches_no_global_generator(spec, shape, site) -> None:
    before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002  (the global one is what matters)
    assert torch.equal(sample_mask(spec, shape, site=site), sample_mask(spec, shape, site=site))
    assert torch.equal(torch.get_rng_state(), before[0]) and repr(np.random.get_state()) == before[1]  # noqa: NPY002


@given(specs, shapes, sites)
def test_p_one_keeps_all(spec, shape, site) -> None:
    assert bool(sample_mask(replace(spec, p=1), shape, site=site).all())


@given(specs, specs, sites)
def test_a_larger_p_keeps_what_a_smaller_one_keeps(spec, other, site) -> None:
    p, q = sorted([spec.p, round(other.p * (spec.span or 1)) / spec.span if spec.mode == "nm" else other.p])
    assume(p > 0)
    few, more = (sample_mask(replace(spec, p=value), (13, 9, 9), site=site) for value in (p, q))
    assert not bool((few & ~more).any())


def test_every_mode_has_bits_on_record_under_each_rule_it_knows() -> None:
    assert {mode for mode, _ in GOLDEN} == set(get_args(Mode))
    assert {rule for _, rule in GOLDEN} == set(get_args(Sampling))


@pytest.mark.parametrize(("mode", "sampling"), GOLDEN)
def test_the_bits_of_scheme_1_are_the_ones_on_record(mode, sampling) -> None:
    spec = MaskSpec(0.3, mode, sampling, seed=2019, span=GOLDEN_SPANS.get(mode))
    assert digest(sample_mask(spec, (16, 9, 7), site=3)) == GOLDEN[mode, sampling]


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


@given(hole_specs, st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)), sites)
@settings(max_examples=25)
def test_holes_are_those_cut_out_one_by_one_where_the_generator_says(spec, shape, site) -> None:
    (channels, height, width), b = shape, spec.span
    words = iter(philox((spec.seed, site), channels * (height + b - 1) * (width + b - 1)))
    kept = torch.ones(shape, dtype=torch.bool)
    for channel in range(channels):
        for top in range(1 - b, height):
            for left in range(1 - b, width):
                if (next(words) >> 11) / 2**53 >= spec.p ** (1 / b**2):
                    kept[channel, max(top, 0) : top + b, max(left, 0) : left + b] = False
    assert torch.equal(sample_mask(spec, shape, site=site), kept)


@given(nm_specs(), st.tuples(st.integers(1, 14), st.integers(1, 5), st.integers(1, 5)), sites)
@settings(max_examples=25)
def test_patterns_are_those_chosen_one_by_one_where_the_generator_says(spec, shape, site) -> None:
    (channels, height, width), (n, m) = shape, spec.pattern
    size = height * width
    words = philox((spec.seed, site), math.ceil(channels / m) * m * size)
    kept = torch.zeros(shape, dtype=torch.bool)
    for first in range(0, channels, m):
        for place in range(size):
            group = sorted(range(first, first + m), key=lambda channel, i=place: (words[channel * size + i], channel))
            for channel in group[:n]:
                if channel < channels:
                    kept[channel, place // width, place % width] = True
    assert torch.equal(sample_mask(spec, shape, site=site), kept)


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


@given(specs, keep, shapes, sites)
def test_the_draws_of_a_site_give_its_mask_at_every_keep_probability(spec, p, shape, site) -> None:
    draws = mask_draws(spec, shape, site=site)
    p = max(1, round(p * spec.span)) / spec.span if spec.mode == "nm" else p
    for each in (spec.p, p, 1.0):
        assert torch.equal(draws.mask(each), sample_mask(replace(spec, p=each), shape, site=site))


def test_draws_have_no_mask_at_a_p_that_the_mode_does_not_have() -> None:
    draws = mask_draws(MaskSpec(0.25, "nm", span=4), (8, 4, 4), site=0)
    with pytest.raises(SpecError, match="whole number of every 4 channels"):
        draws.border(0.3)
    with pytest.raises(SpecError, match="keep probability"):
        draws.mask(1.5)
