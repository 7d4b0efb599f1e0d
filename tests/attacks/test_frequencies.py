from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dcn_plugin.attacks.frequencies import AxisFilter, check_cutoff, check_kernel, cosines, frequencies_kept
from dcn_plugin.errors import SpecError
from tests.toys import images


def slow_dct(image: Tensor) -> Tensor:
    """The orthonormal DCT-II of an (H, W) image, sum by sum."""
    height, width = image.shape
    transformed = torch.zeros_like(image)
    for u in range(height):
        for v in range(width):
            total = 0.0
            for y in range(height):
                for x in range(width):
                    total += (
                        float(image[y, x])
                        * math.cos(math.pi * (2 * y + 1) * u / (2 * height))
                        * math.cos(math.pi * (2 * x + 1) * v / (2 * width))
                    )
            scale = math.sqrt((1 if u == 0 else 2) / height) * math.sqrt((1 if v == 0 else 2) / width)
            transformed[u, v] = scale * total
    return transformed


@pytest.mark.parametrize(
    ("shape", "cutoff", "kept"), [((6, 5), 0.5, (3, 3)), ((4, 8), 0.25, (1, 2)), ((5, 5), 0.01, (1, 1))]
)
def test_the_low_pass_keeps_the_lowest_coefficients_of_an_explicit_dct_and_drops_the_others(
    shape: tuple[int, int], cutoff: float, kept: tuple[int, int]
) -> None:
    clean = images(2, shape=(1, *shape), dtype=torch.float64)
    passed = AxisFilter.low_pass(*shape, cutoff)(clean)
    assert tuple(frequencies_kept(size, cutoff) for size in shape) == kept
    for image, low in zip(clean[:, 0], passed[:, 0], strict=True):
        expected = torch.zeros(shape, dtype=torch.float64)
        expected[: kept[0], : kept[1]] = slow_dct(image)[: kept[0], : kept[1]]
        torch.testing.assert_close(slow_dct(low), expected, rtol=0, atol=1e-9)


def test_a_cut_off_of_one_changes_nothing_and_one_that_keeps_the_first_gives_the_mean() -> None:
    clean = images(3, shape=(3, 7, 4), dtype=torch.float64)
    torch.testing.assert_close(AxisFilter.low_pass(7, 4, 1.0)(clean), clean, rtol=0, atol=1e-12)
    mean = clean.mean(dim=(2, 3), keepdim=True).expand_as(clean)
    torch.testing.assert_close(AxisFilter.low_pass(7, 4, 1e-6)(clean), mean, rtol=0, atol=1e-12)
    np.testing.assert_allclose(cosines(6) @ cosines(6).T, np.eye(6), atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_smoothing_is_a_convolution_with_a_gaussian_and_zeros_beyond_the_border(kernel: int) -> None:
    clean = images(2, shape=(3, 5, 6), dtype=torch.float64)
    line = torch.exp(-0.5 * torch.linspace(-3, 3, kernel, dtype=torch.float64) ** 2) if kernel > 1 else torch.ones(1)
    plane = torch.outer(line, line).double()
    weights = (plane / plane.sum()).expand(3, 1, kernel, kernel)
    expected = torch.nn.functional.conv2d(clean, weights, padding=kernel // 2, groups=3)
    torch.testing.assert_close(AxisFilter.smoothing(5, 6, kernel)(clean), expected, rtol=0, atol=1e-12)


def test_what_comes_out_for_an_image_does_not_depend_on_how_many_there_are() -> None:
    clean = images(33, shape=(3, 16, 16))
    for axis_filter in (AxisFilter.low_pass(16, 16, 0.3), AxisFilter.smoothing(16, 16, 5)):
        whole = axis_filter(clean)
        assert torch.equal(whole, torch.cat([axis_filter(image[None]) for image in clean]))
        assert whole.dtype == torch.float32


@pytest.mark.parametrize("value", [0, -0.1, 1.1, float("nan"), "half", True, None])
def test_a_cut_off_is_a_share(value: object) -> None:
    with pytest.raises(SpecError, match="cut-off"):
        check_cutoff(value)


@pytest.mark.parametrize("value", [0, 2, -3, 2.5, "five", None])
def test_a_kernel_has_a_middle(value: object) -> None:
    with pytest.raises(SpecError, match="kernel"):
        check_kernel(value)
