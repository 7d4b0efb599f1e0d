"""The probe of the interop matrix sees what it looks for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import MaskLostError
from tests.interop.probe import (
    IMAGES,
    NETS,
    assert_dead_channels_learn_nothing,
    assert_glass_is_silent,
    assert_masks_act,
    gradients,
    kept,
    loss_of,
    make,
    unmasked,
    watching,
)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("training", [False, True])
def test_a_defective_network_is_silent_at_every_masked_neuron(name: str, training: bool) -> None:
    model = make(name)
    dcn.verify(model)
    assert_masks_act(model.train(training))


@pytest.mark.parametrize("name", NETS)
def test_the_probe_notices_a_mask_that_is_gone(name: str) -> None:
    model: Any = make(name)
    site = dcn.defect_spec(model).sites[0]
    model.get_submodule(site.name).drop = nn.Identity()
    with watching(model) as sightings:
        model(IMAGES)
    assert sightings.loud() == [site.name]
    with pytest.raises(MaskLostError, match=site.name):
        dcn.verify(model)


@pytest.mark.parametrize("name", NETS)
def test_the_probe_notices_other_bits(name: str) -> None:
    broken = unmasked(make(name))
    with pytest.raises(AssertionError):
        assert_masks_act(broken)
    with pytest.raises(MaskLostError):
        dcn.verify(broken)


class LeakyGradient(dcn.DefectMask2d):
    """Right values, but the gradient passes as if there were no mask."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x * self.mask - x).detach()


def test_the_probe_notices_a_gradient_that_leaks() -> None:
    model = make("every slot")
    next(m for m in model.modules() if isinstance(m, dcn.DefectMask2d)).__class__ = LeakyGradient
    dcn.verify(model)
    with watching(model) as sightings:
        loss_of(model(IMAGES)).backward()
    first = dcn.defect_spec(model).sites[0].name
    assert sightings.loud() == [first]
    assert sightings.sites[first].loud == 0 and sightings.sites[first].loud_gradients > 0


def test_the_probe_notices_a_layer_that_does_not_run() -> None:
    model: Any = make("every slot")
    model.forward = lambda x: torch.zeros(2, 5)
    with watching(model) as sightings:
        model(IMAGES)
    assert len(sightings.loud()) == 5


def test_the_glass_check_notices_a_single_loud_neuron() -> None:
    model = make("every slot")
    outputs = model(IMAGES)
    assert_glass_is_silent(model, outputs)
    for number, site in enumerate(dcn.defect_spec(model).sites, start=1):
        loud = copy.copy(list(outputs))
        loud[number] = outputs[number].detach().clone()
        loud[number][0, ~kept(site)] = torch.eye(1, int((~kept(site)).sum())).flatten()
        with pytest.raises(AssertionError, match=site.name):
            assert_glass_is_silent(model, tuple(loud))


def test_the_gradient_check_notices_a_mask_that_is_gone() -> None:
    model = make("every slot", mode="channel")
    assert_dead_channels_learn_nothing(model, gradients(model))
    broken = unmasked(model)
    with pytest.raises(AssertionError):
        assert_dead_channels_learn_nothing(broken, gradients(broken))
