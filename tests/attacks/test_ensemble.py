from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import PGD, EnsembleSource
from dcn_plugin.errors import ModelOutputError, SpecError
from tests.attack_oracles import Labels, RowNet, right
from tests.toys import ModeNet, images, linear_model


def nets(count: int = 3) -> list[nn.Module]:
    return [RowNet(seed=seed) for seed in range(count)]


def test_the_output_is_the_mean_of_the_logits() -> None:
    models, x = nets(), images(4, dtype=torch.float64)
    expected = (models[0](x) + models[1](x) + models[2](x)) / 3
    torch.testing.assert_close(EnsembleSource(models)(x), expected)


def test_weights_are_divided_by_their_sum() -> None:
    models, x = nets(2), images(4, dtype=torch.float64)
    expected = 0.75 * models[0](x) + 0.25 * models[1](x)
    torch.testing.assert_close(EnsembleSource(models, weights=[3, 1])(x), expected)
    assert torch.equal(EnsembleSource(models, weights=[0, 2])(x), models[1](x))


def test_each_model_keeps_its_own_normalisation() -> None:
    net, x = linear_model(48), images(4, shape=(3, 4, 4))
    one = dcn.Normalized(net, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    other = dcn.Normalized(net, mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    torch.testing.assert_close(EnsembleSource([one, other])(x), (one(x) + other(x)) / 2)


def test_the_gradient_runs_through_every_model() -> None:
    models, x = nets(), images(4, dtype=torch.float64).requires_grad_()
    (found,) = torch.autograd.grad(EnsembleSource(models)(x)[:, 0].sum(), x)
    each = [torch.autograd.grad(model(x)[:, 0].sum(), x)[0] for model in models]
    torch.testing.assert_close(found, sum(each) / 3)


def test_an_attack_on_the_ensemble_fools_models_that_an_attack_on_one_of_them_does_not() -> None:
    models, clean = nets(), images(200, dtype=torch.float64)
    agreed = torch.stack([right(model, clean) for model in models])
    clean, truth = clean[(agreed == agreed[0]).all(0)], agreed[0][(agreed == agreed[0]).all(0)]
    assert len(clean) > 10

    def fooled_all(source: nn.Module) -> float:
        found = PGD(0.3, steps=10)(source, clean, truth).images
        return float(torch.stack([right(model, found) != truth for model in models]).all(0).double().mean())

    assert fooled_all(EnsembleSource(models)) > max(fooled_all(model) for model in models)


def test_modes_and_parameters_are_those_of_the_models() -> None:
    small = ModeNet()
    ensemble = EnsembleSource([small, RowNet(dtype=torch.float32)])
    ensemble.eval()
    assert not small.drop.training
    assert {id(p) for p in small.parameters()} <= {id(p) for p in ensemble.parameters()}
    assert torch.equal(copy.deepcopy(ensemble)(images(3)), ensemble(images(3)))


def test_a_model_may_stand_there_twice() -> None:
    model, x = RowNet(), images(4, dtype=torch.float64)
    torch.testing.assert_close(EnsembleSource([model, model])(x), model(x))


def test_its_description_tells_close_weights_apart() -> None:
    models = nets(2)
    assert repr(EnsembleSource(models, [1, 1])) != repr(EnsembleSource(models, [1, 1 + 1e-9]))


def test_logits_that_are_not_finite_are_left_for_the_attack_to_refuse() -> None:
    model = EnsembleSource([RowNet()])
    x = torch.full((2, 1, 4, 4), torch.nan, dtype=torch.float64)
    assert model(x).isnan().all()


@pytest.mark.parametrize(
    ("models", "weights"),
    [([], None), ([RowNet()], [1, 2]), ([RowNet()], [0]), ([RowNet()], [-1]), ([RowNet()], [float("nan")])],
)
def test_models_and_weights_that_do_not_fit_are_refused(models: list[nn.Module], weights: list[float] | None) -> None:
    with pytest.raises(SpecError):
        EnsembleSource(models, weights)


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(SpecError, match="modules"):
        EnsembleSource([lambda x: x])  # type: ignore[list-item]


def test_models_of_different_classes_are_refused_by_name() -> None:
    with pytest.raises(ModelOutputError, match="num_classes"):
        EnsembleSource([linear_model(16), linear_model(16, classes=5)])(images(2))


def test_a_model_without_logits_is_refused() -> None:
    with pytest.raises(ModelOutputError, match="does not return logits"):
        EnsembleSource([RowNet(), Labels(RowNet())])(images(2, dtype=torch.float64))
