from __future__ import annotations

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import EnsembleSource
from dcn_plugin.errors import LabelError, ModelOutputError
from dcn_plugin.evaluate import correct, predict
from dcn_plugin.evaluate.predictions import ran_on
from dcn_plugin.models import cifar_resnet
from tests.toys import ModeNet, images, linear_model


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_predictions_are_those_of_the_model_in_eval_mode(batch_size: int) -> None:
    model = ModeNet().train()
    x = images(20)
    said, classes = predict(model, x, batch_size=batch_size)
    assert model.training
    assert model.norm.training
    with torch.no_grad():
        assert torch.equal(said, model.eval()(x).argmax(1))
    assert classes == 3


def test_modes_come_back_after_an_exception() -> None:
    model = nn.Sequential(ModeNet().train(), nn.Unflatten(1, (3, 1)))
    before = [module.training for module in model.modules()]
    with pytest.raises(ModelOutputError):
        predict(model, images(3))
    assert [module.training for module in model.modules()] == before


def test_correct_compares_with_the_labels_and_refuses_impossible_ones() -> None:
    model, x = linear_model(16), images(10)
    said, _ = predict(model, x)
    assert correct(model, x, said).all()
    assert not correct(model, x, (said + 1) % 3).any()
    with pytest.raises(LabelError, match="out of range"):
        correct(model, x, said + 3)


def test_probabilities_are_warned_about_by_the_models_name() -> None:
    with pytest.warns(UserWarning, match="mine seems to return probabilities"):
        predict(nn.Sequential(linear_model(16), nn.Softmax(dim=1)), images(3), name="mine")


def test_a_record_says_which_engine_computed_a_compact_model() -> None:
    model = dcn.defectify(cifar_resnet((1, 1, 1, 1), in_chans=1, width=4), p=0.5, input_size=(1, 8, 8)).eval()
    compact = dcn.compact(model, backend="reference")
    plain = ran_on(model)
    assert ran_on(compact) == {**plain, "engine": "compact, reference"}
    assert ran_on(model, source=compact) == {**plain, "source_engine": "compact, reference"}
    assert ran_on(EnsembleSource([compact, model])) == {**plain, "engine": "compact, reference"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_is_asked_in_the_dtype_of_its_parameters_and_the_record_says_which(dtype: torch.dtype) -> None:
    model, plain, x = linear_model(16).to(dtype), linear_model(16), images(20)
    said, _ = predict(model, x)
    with torch.no_grad():
        assert torch.equal(said, model(x.to(dtype)).argmax(1))
    named = str(dtype).removeprefix("torch.")
    assert ran_on(model) == {**ran_on(plain), "dtype": named}
    assert ran_on(plain, source=model) == {**ran_on(plain), "source_dtype": named}
