from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.data import random_shift
from tests.toys import images


@given(count=st.integers(1, 6), pixels=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_image_is_one_of_its_own_shifts(count: int, pixels: int, seed: int) -> None:
    clean = images(count, seed=seed, shape=(2, 5, 4))
    moved = random_shift(clean, pixels, generator=torch.Generator().manual_seed(seed))
    padded = torch.nn.functional.pad(clean, (pixels,) * 4)
    for image, source in zip(moved, padded, strict=True):
        offsets = range(2 * pixels + 1)
        assert any(torch.equal(image, source[:, top : top + 5, left : left + 4]) for top in offsets for left in offsets)


def test_no_pixels_means_no_change_and_the_seed_decides() -> None:
    clean = images(8)
    assert random_shift(clean, 0, generator=torch.Generator()) is clean
    one, same, other = (random_shift(clean, 1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
