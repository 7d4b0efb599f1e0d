from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcn_plugin.data.augment import Moves, draw_moves, random_shift
from tests.toys import images


def slowly(clean: Tensor, moves: Moves) -> Tensor:
    """Pixel by pixel: shift, zeros from outside, then mirror."""
    count, _, height, width = clean.shape
    out = torch.zeros_like(clean)
    for i in range(count):
        top, left = (0, 0) if moves.corners is None else (moves.corners[:, i] - moves.pixels).tolist()
        for y in range(height):
            for x in range(width):
                if 0 <= y + top < height and 0 <= x + left < width:
                    out[i, :, y, x] = clean[i, :, y + top, x + left]
        if moves.flipped is not None and moves.flipped[i]:
            out[i] = out[i].flip(-1)
    return out


@given(
    count=st.integers(1, 5),
    pixels=st.integers(0, 3),
    flip=st.booleans(),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    seed=st.integers(0, 99),
)
def test_a_batch_is_moved_as_a_loop_over_pixels_moves_it(
    count: int, pixels: int, flip: bool, dtype: torch.dtype, seed: int
) -> None:
    clean = (images(count, seed=seed, shape=(2, 4, 5)) * 255).to(dtype)
    moves = draw_moves(count, pixels=pixels, flip=flip, generator=torch.Generator().manual_seed(seed))
    moved = moves(clean)
    assert moved.dtype == dtype
    assert torch.equal(moved, slowly(clean, moves))


def test_shifts_reach_both_ends_and_half_of_the_images_are_mirrored() -> None:
    moves = draw_moves(2000, pixels=2, flip=True, generator=torch.Generator().manual_seed(0))
    assert moves.corners is not None and moves.flipped is not None
    assert all(row.unique().tolist() == [0, 1, 2, 3, 4] for row in moves.corners)
    assert moves.flipped.double().mean() == pytest.approx(0.5, abs=0.05)


def test_the_moves_of_some_rows_are_those_of_the_batch() -> None:
    clean = images(9, shape=(1, 4, 4))
    moves = draw_moves(9, pixels=1, flip=True, generator=torch.Generator().manual_seed(0))
    assert torch.equal(moves[slice(1, None, 2)](clean[1::2]), moves(clean)[1::2])


def test_nothing_asked_for_draws_nothing_and_returns_the_images() -> None:
    clean, generator = images(8), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert draw_moves(8, generator=generator)(clean) is clean
    assert random_shift(clean, 0, generator=generator) is clean
    assert torch.equal(generator.get_state(), before)


def test_the_seed_decides() -> None:
    clean = images(8)
    one, same, other = (random_shift(clean, 1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
