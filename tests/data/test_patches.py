from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcn_plugin.data import patch_permutations, patch_shuffle
from dcn_plugin.errors import SpecError
from tests.toys import images


def patches_of(image: Tensor, k: int) -> list[Tensor]:
    """The patches of one (C, H, W) image, row by row."""
    height, width = image.shape[1] // k, image.shape[2] // k
    return [
        image[:, row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(k)
        for column in range(k)
    ]


shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))


@given(shape=shapes, k=st.integers(1, 4), seed=st.integers(0, 2**64 - 1), first=st.integers(0, 1000))
def test_every_place_holds_the_patch_that_the_permutation_names(
    shape: tuple[int, int, int, int], k: int, seed: int, first: int
) -> None:
    count, channels, height, width = shape
    clean = images(count, shape=(channels, height * k, width * k))
    shuffled = patch_shuffle(clean, k, seed=seed, first_index=first)
    orders = patch_permutations(count, k, seed=seed, first_index=first)
    for image, result, order in zip(clean, shuffled, orders, strict=True):
        assert sorted(order.tolist()) == list(range(k * k))
        before, after = patches_of(image, k), patches_of(result, k)
        assert all(torch.equal(after[place], before[source]) for place, source in enumerate(order.tolist()))


@given(k=st.integers(1, 4), seed=st.integers(0, 99))
def test_the_inverse_permutation_brings_the_image_back(k: int, seed: int) -> None:
    clean = images(3, shape=(2, 2 * k, k))
    shuffled = patch_shuffle(clean, k, seed=seed)
    for image, result, order in zip(clean, shuffled, patch_permutations(3, k, seed=seed), strict=True):
        back = [patches_of(result, k)[place] for place in order.argsort().tolist()]
        assert all(torch.equal(one, other) for one, other in zip(back, patches_of(image, k), strict=True))


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_an_image_is_shuffled_the_same_in_any_batch(sizes: list[int], seed: int) -> None:
    clean = images(sum(sizes), shape=(1, 4, 4))
    starts = [0, *itertools.accumulate(sizes)][:-1]
    parts = [
        patch_shuffle(batch, 2, seed=seed, first_index=start)
        for batch, start in zip(clean.split(sizes), starts, strict=True)
    ]
    assert torch.equal(torch.cat(parts), patch_shuffle(clean, 2, seed=seed))


def test_all_permutations_of_a_grid_are_equally_frequent() -> None:
    orders = patch_permutations(24 * 200, 2, seed=3)
    _, counts = orders.unique(dim=0, return_counts=True)
    expected = 200
    assert len(counts) == 24
    assert ((counts - expected) ** 2 / expected).sum() < 49.7  # chi-square, 23 degrees of freedom, p = 0.001


def test_the_seed_and_the_place_and_the_grid_decide() -> None:
    assert torch.equal(patch_permutations(5, 4, seed=1), patch_permutations(5, 4, seed=1))
    assert not torch.equal(patch_permutations(5, 4, seed=1), patch_permutations(5, 4, seed=2))
    assert len(patch_permutations(50, 4).unique(dim=0)) == 50


def test_the_permutations_are_the_same_for_ever() -> None:
    assert patch_permutations(2, 2, seed=7, first_index=5).tolist() == [[2, 0, 1, 3], [3, 0, 2, 1]]


def test_one_patch_changes_nothing_and_four_do() -> None:
    clean = images(8, shape=(3, 8, 8))
    assert torch.equal(patch_shuffle(clean, 1, seed=9), clean)
    changed = patch_shuffle(clean, 4, seed=9)
    assert not any(torch.equal(one, other) for one, other in zip(clean, changed, strict=True))


def test_the_input_and_the_global_generators_are_left_alone() -> None:
    clean = images(3, shape=(1, 4, 4))
    copy, before = clean.clone(), torch.get_rng_state()
    patch_shuffle(clean, 2)
    patch_shuffle(clean, 1).zero_()
    assert torch.equal(clean, copy)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shape", "k", "seed", "first"),
    [
        ((2, 1, 4, 6), 4, 0, 0),
        ((2, 1, 6, 4), 4, 0, 0),
        ((1, 4, 4), 2, 0, 0),
        ((2, 1, 4, 4), 0, 0, 0),
        ((2, 1, 4, 4), 2, -1, 0),
        ((2, 1, 4, 4), 2, 0, -1),
    ],
)
def test_what_cannot_be_cut_or_keyed_is_refused(shape: tuple[int, ...], k: int, seed: int, first: int) -> None:
    with pytest.raises(SpecError):
        patch_shuffle(torch.zeros(shape), k, seed=seed, first_index=first)
