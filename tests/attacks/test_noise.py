from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from torch import Tensor

from dcn_plugin.attacks import SampleStreams
from dcn_plugin.attacks.noise import (
    TABLE_SIZE,
    WIDEST_ORTHOGONAL,
    CoarseNoise,
    LowPassNoise,
    NoiseTable,
    OrthogonalNoise,
)


def table(
    indices: range = range(4), *, width: int = 50, seed: int = 0, dtype: torch.dtype = torch.float64
) -> NoiseTable:
    return NoiseTable(SampleStreams("test", seed, indices), torch.zeros(len(indices), width, dtype=dtype))


def draw(noise: NoiseTable, rows: list[int], counters: list[int]) -> Tensor:
    return noise.directions(np.array(rows), np.array(counters))[0]


def test_a_direction_depends_on_sample_counter_and_seed_and_on_nothing_else() -> None:
    whole = draw(table(), [0, 1, 2, 3], [5, 6, 7, 5])
    assert torch.equal(draw(table(), [2], [7]), whole[2:3])  # whatever is drawn beside it
    assert torch.equal(draw(table(range(2, 3)), [0], [7]), whole[2:3])  # whatever its batch is
    for other in (draw(table(), [3], [7]), draw(table(), [2], [8]), draw(table(seed=1), [2], [7])):
        assert not torch.equal(other, whole[2:3])


def test_the_squared_norms_are_those_of_the_directions() -> None:
    moves, squares = table().directions(np.arange(4), np.arange(4))
    np.testing.assert_allclose(squares, moves.square().sum(dim=1).numpy(), rtol=1e-9)


def test_overwriting_a_direction_leaves_the_table_alone() -> None:
    noise = table()
    first = draw(noise, [0, 1], [3, 3])
    kept = first.clone()
    first.zero_()
    assert torch.equal(draw(noise, [0, 1], [3, 3]), kept)
    assert torch.equal(draw(table(), [0, 1], [3, 3]), kept)  # tables of one key share their numbers


def test_both_precisions_see_the_same_directions() -> None:
    single, double = (draw(table(dtype=dtype), [1], [9]) for dtype in (torch.float32, torch.float64))
    assert single.dtype == torch.float32
    assert torch.equal(single.double(), double)


def test_numbers_are_normal_and_directions_uncorrelated() -> None:
    rows, counters = np.repeat(np.arange(4), 500), np.tile(np.arange(500), 4)
    moves, _ = table().directions(rows, counters)
    assert moves.mean().abs() < 0.01
    assert (moves.std() - 1).abs() < 0.01
    assert ((moves.abs() < 1).double().mean() - 0.6827).abs() < 0.01
    unit = moves / moves.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    assert cosines.mean().abs() < 0.002
    assert (cosines.std() - 50**-0.5).abs() < 0.005  # of independent directions in 50 dimensions


def test_images_wider_than_the_table_get_a_larger_one() -> None:
    noise = table(range(2), width=TABLE_SIZE + 3, dtype=torch.float32)
    moves = draw(noise, [0, 0, 1], [0, 1, 0])
    assert moves.shape == (3, TABLE_SIZE + 3)
    assert not torch.equal(moves[0], moves[1])


def test_the_directions_of_a_series_are_those_of_the_counters_from_its_beginning() -> None:
    noise, rows, numbers = table(), np.arange(3), np.array([0, 4, 9])
    series, squares = noise.directions(rows, np.array([7, 7, 1]), numbers)
    expected, expected_squares = noise.directions(rows, np.array([7, 11, 10]))
    assert torch.equal(series, expected)
    np.testing.assert_array_equal(squares, expected_squares)


def orthogonal(indices: range = range(4), *, width: int = 50, dtype: torch.dtype = torch.float64) -> OrthogonalNoise:
    return OrthogonalNoise(SampleStreams("test", 0, indices), torch.zeros(len(indices), width, dtype=dtype))


def series(noise: NoiseTable, row: int, counter: int, count: int) -> Tensor:
    moves, squares = noise.directions(np.full(count, row), np.full(count, counter), np.arange(count))
    np.testing.assert_allclose(squares, moves.double().square().sum(dim=1).numpy(), rtol=1e-6)
    return moves


def test_as_many_directions_of_a_series_as_there_are_dimensions_make_a_basis() -> None:
    moves = series(orthogonal(), 2, 30, 110) / 50**0.5
    eye = torch.eye(50, dtype=torch.float64)
    torch.testing.assert_close(moves[:50] @ moves[:50].T, eye, rtol=0, atol=1e-6)
    torch.testing.assert_close(moves[50:100] @ moves[50:100].T, eye, rtol=0, atol=1e-6)
    overlaps = moves[:50] @ moves[50:100].T
    assert 0.8 * 50**-0.5 < overlaps.std() < 1.2 * 50**-0.5  # as of two bases that know nothing of each other


def test_samples_and_series_have_bases_of_their_own() -> None:
    whole = series(orthogonal(), 2, 30, 60)
    assert torch.equal(series(orthogonal(range(2, 3)), 0, 30, 60), whole)  # whatever its batch is
    for other in (series(orthogonal(), 1, 30, 60), series(orthogonal(), 2, 90, 60)):
        overlaps = (whole[:50] @ other[:50].T) / 50
        assert 0.8 * 50**-0.5 < overlaps.std() < 1.2 * 50**-0.5
    assert torch.equal(series(orthogonal(dtype=torch.float32), 2, 30, 60).double(), whole)


def test_orthogonal_entries_are_centred_and_of_variance_one() -> None:
    moves = torch.cat([series(orthogonal(), row, counter, 50) for row in range(4) for counter in range(0, 400, 20)])
    assert moves.mean().abs() < 0.01
    assert (moves.std() - 1).abs() < 0.01


def test_the_widest_directions_are_those_of_the_table() -> None:
    for width in (WIDEST_ORTHOGONAL, WIDEST_ORTHOGONAL + 1):
        wide, plain = orthogonal(range(2), width=width), table(range(2), width=width)
        same = torch.equal(series(wide, 1, 5, 3), series(plain, 1, 5, 3))
        assert same == (width > WIDEST_ORTHOGONAL)


def low_pass(indices: range = range(4), shape: tuple[int, int, int] = (3, 9, 6), *, factor: float = 2) -> LowPassNoise:
    images = torch.zeros(len(indices), *shape, dtype=torch.float64)
    return LowPassNoise(SampleStreams("test", 0, indices), images, factor)


def test_the_lowest_coefficients_are_orthogonal_directions_and_the_others_zero() -> None:
    rows, counters, numbers = np.array([0, 3, 3]), np.array([3, 5, 5]), np.array([0, 7, 8])
    moves, squares = low_pass().directions(rows, counters, numbers)
    coefficients = scipy.fft.dctn(moves.view(-1, 3, 9, 6).numpy(), axes=(2, 3), norm="ortho")
    expected, expected_squares = orthogonal(width=3 * 5 * 3).directions(rows, counters, numbers)
    np.testing.assert_allclose(coefficients[:, :, :5, :3].reshape(3, -1), expected.numpy(), atol=1e-12)
    np.testing.assert_array_equal(squares, expected_squares)
    coefficients[:, :, :5, :3] = 0
    np.testing.assert_allclose(coefficients, 0, atol=1e-12)


def test_low_pass_directions_of_a_series_make_a_basis() -> None:
    count = 3 * 5 * 3
    moves, _ = low_pass().directions(np.full(count, 1), np.full(count, 9), np.arange(count))
    torch.testing.assert_close(moves @ moves.T / count, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 9, 6)])
def test_low_pass_directions_do_not_depend_on_what_is_drawn_beside_them(shape: tuple[int, int, int]) -> None:
    streams, images = SampleStreams("test", 0, range(4)), torch.zeros(4, *shape)
    noise = LowPassNoise(streams, images, 2.5)
    rows, numbers = np.repeat(np.arange(4), 32), np.tile(np.arange(32), 4)
    whole, _ = noise.directions(rows, rows, numbers)
    for some in ([70], [3, 70], list(range(64, 96))):
        alone, _ = noise.directions(rows[some], rows[some], numbers[some])
        assert torch.equal(alone, whole[some])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 1), (1, 5, 4)])
def test_low_pass_directions_have_the_size_of_the_image_whatever_the_factor(shape: tuple[int, int, int]) -> None:
    for factor in (1, 1.6, 7):
        moves, squares = low_pass(range(2), shape, factor=factor).directions(np.arange(2), np.arange(2), np.arange(2))
        assert moves.shape == (2, shape[0] * shape[1] * shape[2])
        np.testing.assert_allclose(squares, moves.square().sum(dim=1).numpy(), rtol=1e-6)


def coarse(indices: range, shape: tuple[int, int, int] = (3, 9, 6), *, factor: int = 2) -> CoarseNoise:
    return CoarseNoise(SampleStreams("test", 0, indices), torch.zeros(len(indices), *shape), factor)


def test_coarse_directions_vary_slowly_over_the_image_and_not_over_colours() -> None:
    moves, squares = coarse(range(4)).directions(np.repeat(np.arange(4), 200), np.tile(np.arange(200), 4))
    pixels = moves.view(-1, 3, 9, 6)
    assert (pixels[..., 1:] * pixels[..., :-1]).mean() > 0.6 * pixels.square().mean()
    assert (pixels[..., 1:, :] * pixels[..., :-1, :]).mean() > 0.6 * pixels.square().mean()
    assert (pixels[:, 1:] * pixels[:, :-1]).mean().abs() < 0.05 * pixels.square().mean()
    np.testing.assert_allclose(squares, moves.double().square().sum(dim=1).numpy(), rtol=1e-5)


def test_coarse_directions_depend_on_sample_and_counter_alone() -> None:
    whole = coarse(range(4)).directions(np.array([0, 2, 3]), np.array([5, 6, 7]))[0]
    assert torch.equal(coarse(range(2, 3)).directions(np.array([0]), np.array([6]))[0], whole[1:2])
    assert not torch.equal(coarse(range(2, 3)).directions(np.array([0]), np.array([7]))[0], whole[1:2])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 1), (1, 5, 4)])
def test_coarse_directions_have_the_size_of_the_image_whatever_the_factor(shape: tuple[int, int, int]) -> None:
    for factor in (1, 2, 7):
        moves, _ = coarse(range(2), shape, factor=factor).directions(np.arange(2), np.arange(2))
        assert moves.shape == (2, shape[0] * shape[1] * shape[2])


def test_the_global_generators_are_not_touched() -> None:
    before = torch.get_rng_state()
    draw(table(seed=77), [0], [0])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_a_gpu_sees_the_same_directions() -> None:
    like = torch.zeros(4, 50, device="cuda")
    moves, squares = NoiseTable(SampleStreams("test", 0, range(4)), like).directions(np.arange(4), np.arange(4))
    expected, expected_squares = table(dtype=torch.float32).directions(np.arange(4), np.arange(4))
    assert torch.equal(moves.cpu(), expected)
    np.testing.assert_array_equal(squares, expected_squares)
