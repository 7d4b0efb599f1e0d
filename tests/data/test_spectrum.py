from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.data import amplitude_partners, amplitude_swap
from dcn_plugin.errors import DataError, SpecError
from tests.toys import images


@given(height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 99))
def test_the_swap_is_the_textbook_formula_in_numpy(height: int, width: int, seed: int) -> None:
    one, other = (images(2, seed=s, shape=(3, height, width), dtype=torch.float64) for s in (seed, seed + 1))
    swapped = amplitude_swap(one, other)
    for n in range(2):
        mixed = np.empty((3, height, width))
        for channel in range(3):
            phase = np.angle(np.fft.fft2(one[n, channel].numpy()))
            amplitude = np.abs(np.fft.fft2(other[n, channel].numpy()))
            mixed[channel] = np.fft.ifft2(amplitude * np.exp(1j * phase)).real
        np.testing.assert_allclose(swapped.images[n].numpy(), mixed.clip(0, 1), atol=1e-9)
        outside = ((mixed < -1e-9) | (mixed > 1 + 1e-9)).mean()
        assert swapped.clipped[n].item() == pytest.approx(outside)


@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_an_image_swapped_with_itself_is_itself(height: int, width: int, seed: int) -> None:
    clean = images(2, seed=seed, shape=(2, height, width))
    swapped = amplitude_swap(clean, clean)
    assert (swapped.images - clean).abs().max() < 1e-5
    assert not swapped.clipped.any()


def test_a_swap_keeps_the_phase_and_takes_the_amplitude_where_nothing_is_clipped() -> None:
    one, other = (0.5 + 0.02 * (images(3, seed=s, shape=(1, 8, 6), dtype=torch.float64) - 0.5) for s in (0, 1))
    swapped = amplitude_swap(one, other)
    assert not swapped.clipped.any()
    mixed, own, foreign = (torch.fft.fft2(x) for x in (swapped.images, one, other))
    assert torch.allclose(mixed.abs(), foreign.abs(), atol=1e-9)
    assert torch.allclose(mixed / mixed.abs(), own / own.abs(), atol=1e-6)
    assert (swapped.images - one).abs().max() > 1e-3


def test_where_an_image_has_no_energy_its_phase_is_zero_and_not_that_of_rounding_errors() -> None:
    # A cosine has phase 0 at its own frequency; every other coefficient is 0 up to rounding.
    wave = 0.5 + 0.4 * torch.cos(2 * torch.pi * 2 * torch.arange(7, dtype=torch.float64) / 7).expand(1, 1, 6, 7)
    other = images(1, shape=(1, 6, 7), dtype=torch.float64)
    zero_phase = torch.fft.ifft2(torch.fft.fft2(other).abs().to(torch.complex128)).real.clamp(0, 1)
    assert torch.allclose(amplitude_swap(wave, other).images, zero_phase, atol=1e-9)
    assert torch.allclose(amplitude_swap(torch.full_like(other, 0.3), other).images, zero_phase, atol=1e-9)
    assert (amplitude_swap(other, torch.zeros_like(other)).images == 0).all()


def test_the_clipped_share_is_counted_per_image() -> None:
    clean = images(2, shape=(1, 8, 8))
    partners = torch.stack([clean[0], torch.ones(1, 8, 8).mul(torch.eye(8))])
    clipped = amplitude_swap(clean, partners).clipped
    assert clipped[0] == 0
    assert 0 < clipped[1] < 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4)),
        (torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)),
    ],
)
def test_tensors_that_do_not_fit_are_refused(one: torch.Tensor, other: torch.Tensor) -> None:
    with pytest.raises(SpecError, match="do not fit"):
        amplitude_swap(one, other)


@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=40), seed=st.integers(0, 2**64 - 1))
def test_every_partner_is_of_another_class(labels: list[int], seed: int) -> None:
    classes = torch.tensor(labels)
    if len(set(labels)) == 1:
        with pytest.raises(DataError, match="one class"):
            amplitude_partners(classes, seed=seed)
        return
    partners = amplitude_partners(classes, seed=seed)
    assert (classes[partners] != classes).all()
    assert torch.equal(partners, amplitude_partners(classes, seed=seed))


def test_every_image_of_another_class_is_chosen_equally_often() -> None:
    labels = torch.tensor([3, 1, 3, 7, 1, 3])
    chosen = torch.zeros(6, 6)
    runs = 2000
    for seed in range(runs):
        chosen[torch.arange(6), amplitude_partners(labels, seed=seed)] += 1
    others = labels.unsqueeze(0) != labels.unsqueeze(1)
    expected = runs * others / others.sum(dim=1, keepdim=True)
    assert not chosen[~others].any()
    assert ((chosen - expected).abs() < 5 * expected.sqrt() + 1).all()


def test_the_partners_are_the_same_for_ever() -> None:
    assert amplitude_partners(torch.tensor([0, 0, 1, 1, 2, 2]), seed=5).tolist() == [4, 3, 1, 0, 1, 0]
