from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.support.model_state import device_of, dummy_image, eval_mode, frozen_weights, training_flags


def test_the_dummy_image_is_the_same_at_every_call_and_not_constant() -> None:
    model = nn.Conv2d(3, 4, 3).double()
    image = dummy_image(model, (3, 16, 16))
    assert image.shape == (1, 3, 16, 16) and image.dtype == torch.float64
    assert torch.equal(image, dummy_image(model, (3, 16, 16))) and image.std() > 0


def test_eval_mode_restores_every_flag_and_lets_modules_undo_what_they_do_on_eval() -> None:
    class Merging(nn.Module):
        merged = False

        def train(self, mode: bool = True) -> nn.Module:
            self.merged = not mode
            return super().train(mode)

    model = nn.Sequential(Merging(), nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].eval()
    with pytest.raises(KeyError), eval_mode(model):
        assert model[0].merged and not any(module.training for module in model.modules())
        raise KeyError
    assert not model[0].merged
    assert [module.training for module in model] == [True, False, True]


def test_a_cache_that_a_module_drops_on_eval_is_dropped() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.cache: Tensor | None = None

        def train(self, mode: bool = True) -> nn.Module:
            self.cache = None
            return super().train(mode)

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return x * self.weight
            self.cache = self.weight.detach().clone() if self.cache is None else self.cache
            return x * self.cache

    model = Cached()
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        with eval_mode(model):
            assert model(torch.ones(())) == value


def test_training_flags_come_back_after_an_exception_too() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].eval()
    with pytest.raises(KeyError), training_flags(model):
        model.eval()
        model[1].train()
        raise KeyError
    assert [module.training for module in (model, *model)] == [True, True, False]


def test_weights_are_frozen_inside_and_each_is_afterwards_as_it_was() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with pytest.raises(KeyError), frozen_weights(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    assert model.weight.requires_grad
    assert not model.bias.requires_grad


def test_the_device_is_that_of_a_parameter_or_else_of_a_buffer_or_else_the_cpu() -> None:
    with_buffer = nn.Module()
    with_buffer.register_buffer("table", torch.empty(1, device="meta"))
    assert device_of(nn.Linear(1, 1, device="meta")).type == "meta"
    assert device_of(with_buffer).type == "meta"
    assert device_of(nn.ReLU()) == torch.device("cpu")
