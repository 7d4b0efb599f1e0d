from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD
from dcn_plugin.data import load_digits
from dcn_plugin.errors import DcnError, NotDefectiveError, SpecError
from dcn_plugin.evaluate import model_key, relation
from dcn_plugin.models import MaskExpectation
from dcn_plugin.support.randomness import derived_seed
from dcn_plugin.surgery import masks_of
from dcn_plugin.training import TrainConfig, train
from tests.nets import SmallNet
from tests.toys import images

SHAPE = (3, 16, 16)


def network(*, seed: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = SmallNet()
    with torch.no_grad():
        model.fc.weight.mul_(100)  # so that masks move logits by more than rounding does
    return dcn.defectify(model, p=0.5, seed=seed, input_size=SHAPE).eval()


def redrawn(model: nn.Module, draw: int, *, seed: int = 0) -> nn.Module:
    """A copy under other masks, set by hand."""
    other = copy.deepcopy(model)
    for mask in masks_of(other).values():
        drawn = derived_seed("mask expectation", seed, mask.spec.seed, "eval", draw)
        mask.mask = dcn.sample_mask(dataclasses.replace(mask.spec, seed=drawn), mask.shape, site=mask.site)[None]
    return other


def test_the_logits_are_the_mean_over_networks_with_other_masks() -> None:
    model, x = network(), images(5, shape=SHAPE)
    expected = torch.stack([redrawn(model, draw)(x) for draw in range(3)]).mean(0)
    torch.testing.assert_close(MaskExpectation(model, draws=3).eval()(x), expected)
    assert (expected - model(x)).abs().max() > 1e-2  # its own masks say something else


def test_the_gradient_of_an_attack_is_that_of_the_mean() -> None:
    model, x = network(), images(4, shape=SHAPE)
    leaf = x.clone().requires_grad_()
    torch.stack([redrawn(model, draw)(leaf) for draw in range(2)]).mean(0)[:, 1].sum().backward()
    other = x.clone().requires_grad_()
    MaskExpectation(model, draws=2).eval()(other)[:, 1].sum().backward()
    assert leaf.grad is not None and other.grad is not None
    torch.testing.assert_close(other.grad, leaf.grad)


def test_the_network_has_its_own_masks_again_also_after_an_exception() -> None:
    model = network()
    before = {path: mask.mask.clone() for path, mask in masks_of(model).items()}
    source = MaskExpectation(model, draws=2)
    for training in (True, False):
        source.train(training)
        source(images(2, shape=SHAPE))
        with pytest.raises(DcnError):
            source(images(2, shape=(3, 8, 8)))
        assert all(torch.equal(mask.mask, before[path]) for path, mask in masks_of(model).items())


def test_training_draws_masks_for_every_pass_and_goes_on_where_it_was() -> None:
    def outputs(source: MaskExpectation, count: int) -> list[torch.Tensor]:
        with torch.no_grad():
            return [source(x) for _ in range(count)]

    x = images(6, shape=SHAPE)
    source = MaskExpectation(network()).train()
    first, second, third = outputs(source, 3)
    assert not torch.equal(first, second) and not torch.equal(second, third)
    again = MaskExpectation(network()).train()
    outputs(again, 2)
    later = MaskExpectation(network()).train()
    later.load_state_dict(again.state_dict())
    torch.testing.assert_close(outputs(later, 1)[0], third)


def test_masks_follow_from_the_seed_alone_and_images_do_not_mix() -> None:
    x = images(6, shape=SHAPE)
    source = MaskExpectation(network(), draws=2).eval()
    whole = source(x)
    torch.testing.assert_close(torch.cat([source(x[:2]), source(x[2:])]), whole)
    torch.testing.assert_close(MaskExpectation(network(), draws=2).eval()(x), whole)
    for other in (MaskExpectation(network(), draws=2, seed=1), MaskExpectation(network(), draws=3)):
        assert (other.eval()(x) - whole).abs().max() > 1e-3
        assert model_key(other) != model_key(source)


def test_weights_that_were_trained_under_changing_masks_suit_masks_they_have_not_met() -> None:
    digits = load_digits(size=8)
    config = TrainConfig(epochs=5, select="last")

    def right(model: nn.Module) -> float:
        x, labels = digits.test.images[:150], digits.test.labels[:150]
        with torch.no_grad():
            return float((model(x).argmax(1) == labels).double().mean())

    def trained(model: nn.Module) -> nn.Module:
        train(model, digits.train, config)
        return model.eval()

    def defective() -> nn.Module:
        torch.manual_seed(0)
        options = {"padding": 1, "output_size": 8, "p": 0.3}
        first = dcn.DefectiveConv2d(1, 8, 3, site=0, norm=nn.BatchNorm2d(8), **options)  # type: ignore[arg-type]
        second = dcn.DefectiveConv2d(8, 8, 3, site=1, norm=nn.BatchNorm2d(8), **options)  # type: ignore[arg-type]
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))

    fixed = MaskExpectation(trained(defective()), draws=4, seed=9).eval()
    changing = trained(MaskExpectation(defective(), draws=4, seed=9))
    assert right(changing) > right(fixed) + 0.2


def test_it_is_a_source_for_attacks_and_other_masks_to_a_target() -> None:
    source, target = MaskExpectation(network(), draws=2).eval(), network(seed=3)
    x = images(4, shape=SHAPE)
    labels = source(x).argmax(1)
    result = PGD(0.1, steps=3)(source, x, labels)
    assert result.queries.tolist() == [1 + 3 + 1] * 4
    assert not torch.equal(result.images, x)
    assert relation(source, target) == "other masks"


def test_what_has_no_masks_and_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(NotDefectiveError):
        MaskExpectation(SmallNet())
    with pytest.raises(NotDefectiveError):
        MaskExpectation(dcn.compact(network(), backend="reference"))
    for options in ({"draws": 0}, {"draws": True}, {"draws": 1001}, {"seed": -1}, {"seed": 0.5}):
        with pytest.raises(SpecError):
            MaskExpectation(network(), **options)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="not a network"):
        MaskExpectation("resnet18")  # type: ignore[arg-type]
