from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from dcn_plugin.data import ImageSet, amplitude_partners
from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.evaluate import RunDirectory, amplitude
from tests.evaluate.watched import WatchedImages, count_calls, known_set, says, two_models
from tests.toys import images, linear_model

MODELS = two_models()


def test_counts_and_figures_agree_with_a_slow_loop_over_single_images() -> None:
    data = known_set()
    results = list(amplitude(MODELS, data, seed=9, partner_seed=5, batch_size=7))
    assert [r.target for r in results] == ["a", "b"]
    partners = amplitude_partners(data.labels, seed=5).tolist()
    for result in results:
        counted = defended = right = followed = clipped = 0
        for place, partner in enumerate(partners):
            label, other = int(data.labels[place]), int(data.labels[partner])
            own, lent = (torch.fft.fft2(data.images[i].double()) for i in (place, partner))
            raw = torch.fft.ifft2(lent.abs() * own / own.abs()).real
            clipped += int(((raw < 0) | (raw > 1)).sum())
            mixed = raw.clamp(0, 1).float()
            counts = all(says(m, data.images[place]) == label for m in MODELS.values())
            said = says(MODELS[result.target], mixed)
            counted += counts
            defended += counts and said == label
            followed += counts and said == other
            right += said == label
        assert (result.n_counted, result.n_defended, result.n_correct) == (counted, defended, right)
        assert result.figures == {
            "n_amplitude_class": followed,
            "amplitude_class_rate": followed / counted,
            "clipped_share": pytest.approx(clipped / data.images.numel()),
        }
        assert 0 < clipped < data.images.numel()
        assert 0 < followed < counted
    assert {(r.protocol, r.attack, r.seed) for r in results} == {("amplitude-swap", "amplitude swap", 9)}
    assert results[0].attack_settings == {"partner_seed": 5}


def test_an_amplitude_class_among_no_images_has_no_rate() -> None:
    class Never(nn.Module):
        """Wrong on every image of the set: class 3, which no image has."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 5 * torch.eye(4)[3].expand(len(x), 4)

    (result,) = amplitude({"never": Never()}, dataclasses.replace(known_set(), num_classes=4), seed=0)
    assert result.n_counted == 0
    assert result.figures.items() >= {"n_amplitude_class": 0, "amplitude_class_rate": None}.items()


def test_images_of_one_class_and_no_target_are_refused() -> None:
    with pytest.raises(DataError, match="one class"):
        amplitude(MODELS, ImageSet(images(3, shape=(1, 8, 8)), torch.zeros(3).long(), 3, "one"), seed=0)
    with pytest.raises(SpecError, match="target"):
        next(amplitude({}, known_set(), seed=0))


def test_a_finished_measurement_is_not_asked_again(tmp_path: Path) -> None:
    model, data = linear_model(64), known_set()
    calls = count_calls(model)
    first = list(amplitude({"a": model}, data, seed=0, store=RunDirectory(tmp_path)))
    assert calls
    calls.clear()
    assert list(amplitude({"a": model}, data, seed=0, store=RunDirectory(tmp_path))) == first
    assert not calls
    assert list(amplitude({"a": model}, data, seed=0, partner_seed=1, store=RunDirectory(tmp_path))) != first
    assert calls


def test_images_are_read_a_batch_at_a_time_whose_size_changes_nothing() -> None:
    data = WatchedImages(known_set())
    small = list(amplitude(MODELS, data, seed=0, batch_size=7))
    assert data.largest == 7
    assert small == list(amplitude(MODELS, data, seed=0, batch_size=60))
