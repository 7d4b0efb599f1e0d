from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import Noise, add_noise, correct, gaussian
from tests.toys import image_set, images, linear_model


@given(level=st.floats(1e-3, 10), noise=st.sampled_from(["plain", "clipped"]), seed=st.integers(0, 2**64 - 1))
def test_noisy_images_stay_in_the_range_and_clipped_noise_in_its_ball(level: float, noise: Noise, seed: int) -> None:
    clean = images(5)
    noisy = add_noise(clean, level, noise=noise, seed=seed)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    if noise == "clipped":
        assert (noisy - clean).abs().max() <= level + 1e-6


@pytest.mark.parametrize("cut", [1, 3, 7])
def test_an_images_noise_depends_on_its_place_not_on_its_batch(cut: int) -> None:
    clean = images(8)
    whole = add_noise(clean, 0.3, seed=2)
    parts = [add_noise(clean[:cut], 0.3, seed=2), add_noise(clean[cut:], 0.3, seed=2, first_index=cut)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(add_noise(clean, 0.3, seed=3), whole)


def test_plain_noise_has_the_sigma_that_was_asked_for() -> None:
    grey = torch.full((100, 1, 10, 10), 0.5)
    change = add_noise(grey, 0.05) - grey  # ten sigmas from the edge: nothing is clipped
    assert change.std() == pytest.approx(0.05, rel=0.05)
    assert change.mean() == pytest.approx(0, abs=0.0025)


def test_clipped_noise_is_the_papers() -> None:
    grey = torch.full((100, 1, 10, 10), 0.5)
    change = add_noise(grey, 0.1, noise="clipped") - grey
    # N(0, 0.05^2) clipped at two sigmas: 4.55 % of the pixels lie at the edge.
    assert (change.abs() > 0.1 - 1e-6).float().mean() == pytest.approx(0.0455, abs=0.01)
    inner = change[change.abs() < 0.05]
    assert inner.std() < change.std() < 0.05


def test_a_higher_level_scales_the_same_noise() -> None:
    grey = torch.full((3, 1, 4, 4), 0.5)
    torch.testing.assert_close((add_noise(grey, 0.02) - grey) * 2, add_noise(grey, 0.04) - grey, rtol=0, atol=1e-6)


def test_counts_agree_with_a_slow_loop_and_count_what_all_targets_get_right() -> None:
    targets: dict[str, nn.Module] = {"a": linear_model(16, seed=0), "b": linear_model(16, seed=1)}
    data = image_set(60)
    results = list(gaussian(targets, data, [0.1, 0.4], seed=9, noise_seed=5))
    assert [(r.eps, r.target) for r in results] == [(0.1, "a"), (0.1, "b"), (0.4, "a"), (0.4, "b")]
    shared = [
        i
        for i in range(60)
        if all(correct(m, data.images[i : i + 1], data.labels[i : i + 1]).item() for m in targets.values())
    ]
    for result in results:
        assert result.eps is not None
        noisy = add_noise(data.images, result.eps, seed=5)
        still = correct(targets[result.target], noisy, data.labels)
        assert result.n_counted == len(shared) > 0
        assert result.n_defended == int(still[shared].sum())
        assert result.n_correct == int(still.sum())
        assert (result.protocol, result.source, result.seed) == ("gaussian", None, 9)


@pytest.mark.parametrize("level", [0, -1, float("nan"), float("inf")])
def test_a_level_that_is_none_is_refused(level: float) -> None:
    with pytest.raises(SpecError, match="level"):
        add_noise(images(1), level)


def test_an_unknown_noise_is_refused() -> None:
    with pytest.raises(SpecError, match="noise"):
        add_noise(images(1), 0.1, noise="pink")  # type: ignore[arg-type]


def test_noise_without_a_target_is_refused() -> None:
    with pytest.raises(SpecError, match="target"):
        next(gaussian({}, image_set(3), [0.1], seed=0))
