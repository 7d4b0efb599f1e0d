"""DefectiveTransformer: masks put in the way ART puts its own transforming defences in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.defences.transformer.transformer import Transformer
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.classification import PyTorchClassifier
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.adapters.art import DefectiveClassifier, DefectiveTransformer
from dcn_plugin.errors import AlreadyDefectiveError, BlockError, InputSizeError, LabelError, SpecError
from tests import toys
from tests.adapters.art_nets import CLASSES, SHAPE, classifier, defective, same_masks, samples

OPTIONS: dict[str, Any] = {"blocks": ("norm",), "p": 0.5, "seed": 4}
X, Y = samples(16), np.arange(16) % CLASSES


def plain(**options: Any) -> PyTorchClassifier:
    net = toys.ModeNet().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return classifier(net, PyTorchClassifier, optimizer=optimizer, **options)


def test_the_result_is_the_network_that_defectify_makes() -> None:
    before = plain(preprocessing=(0.4, 0.5))
    weights = {key: value.clone() for key, value in before.model.state_dict().items()}
    after = DefectiveTransformer(before, **OPTIONS)(X)
    assert type(after) is DefectiveClassifier
    assert same_masks(after.model, defective(seed=4))
    expected = classifier(dcn.defectify(before.model, ("norm",), 0.5, input_size=SHAPE, seed=4).eval())
    expected.set_params(preprocessing=(0.4, 0.5))
    np.testing.assert_allclose(after.predict(X), expected.predict(X), atol=1e-6)
    assert np.abs(after.predict(X) - before.predict(X)).max() > 0.1
    # The classifier that was handed over is as it was.
    assert not dcn.is_defective(before.model)
    assert all(torch.equal(before.model.state_dict()[key], value) for key, value in weights.items())


def test_a_mode_brings_its_span() -> None:
    masked = DefectiveTransformer(plain(), **OPTIONS, mode="hole", span=3)().model
    assert same_masks(masked, defective(seed=4, mode="hole", span=3))


def test_the_optimizer_comes_along_without_the_momentum_of_another_network() -> None:
    before = plain()
    with torch.random.fork_rng():
        before.fit(X, Y, nb_epochs=1)
    assert before.optimizer.state
    after = DefectiveTransformer(before, **OPTIONS)()
    held = {id(p) for group in after.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in after.model.parameters()}
    assert not after.optimizer.state and before.optimizer.state


def test_all_that_a_classifier_knows_is_kept() -> None:
    before = plain(preprocessing=(0.4, 0.5))
    after = DefectiveTransformer(before, **OPTIONS)()
    for name, value in before.get_params().items():
        if name not in ("model", "optimizer", "loss"):
            np.testing.assert_equal(after.get_params()[name], value)
    assert type(after.loss) is type(before.loss)


def test_a_second_classifier_may_be_the_one_that_is_transformed() -> None:
    one, other = plain(), plain()
    with torch.no_grad():
        other.model.head.bias.add_(1)
    after = DefectiveTransformer(one, **OPTIONS)(X, other)
    assert torch.equal(after.model.head.bias, other.model.head.bias)


def test_fit_trains_a_copy_with_its_masks() -> None:
    before = plain()
    weights = before.model.head.weight.detach().clone()
    transformer = DefectiveTransformer(before, **OPTIONS)
    assert isinstance(transformer, Transformer) and not transformer.is_fitted
    untrained = transformer()
    with torch.random.fork_rng():
        transformer.fit(X, Y, batch_size=8, nb_epochs=20)
    after = transformer()
    assert transformer.is_fitted and transformer.get_classifier() is before
    assert after is transformer(X) and same_masks(after.model, untrained.model)
    assert after.compute_loss(X, Y).mean() < untrained.compute_loss(X, Y).mean()
    assert torch.equal(before.model.head.weight, weights)
    dcn.verify(after.model)


def test_fit_needs_labels_and_an_optimizer() -> None:
    with pytest.raises(LabelError, match="labels"):
        DefectiveTransformer(plain(), **OPTIONS).fit(X)
    with pytest.raises(ValueError, match="optimizer"):
        DefectiveTransformer(classifier(toys.ModeNet(), PyTorchClassifier), **OPTIONS).fit(X, Y)


def test_new_parameters_forget_what_was_trained_under_the_old_ones() -> None:
    transformer = DefectiveTransformer(plain(), **OPTIONS)
    with torch.random.fork_rng():
        transformer.fit(X, Y, nb_epochs=1)
    transformer.set_params(seed=9)
    assert not transformer.is_fitted
    assert same_masks(transformer().model, defective(seed=9))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"p": 0}, SpecError),
        ({"mode": "pixel"}, SpecError),
        ({"sampling": "none"}, SpecError),
        ({"span": 3}, SpecError),
        ({"seed": -1}, SpecError),
        ({"bloks": "top"}, SpecError),
    ],
)
def test_a_parameter_that_is_not_allowed_is_refused_by_name(options: dict[str, Any], error: type[Exception]) -> None:
    transformer = DefectiveTransformer(plain(), **OPTIONS)
    with pytest.raises(error):
        transformer.set_params(**options)
    if "bloks" not in options:
        with pytest.raises(error):
            DefectiveTransformer(plain(), **{**OPTIONS, **options})


def test_the_errors_of_defectify_come_through() -> None:
    with pytest.raises(BlockError, match="layer9"):
        DefectiveTransformer(plain(), ("layer9",))()
    with pytest.raises(AlreadyDefectiveError):
        DefectiveTransformer(classifier(), **OPTIONS)()


def test_a_classifier_that_could_not_be_rebuilt_is_refused() -> None:
    smoothed = PyTorchRandomizedSmoothing(
        toys.ModeNet(), nn.CrossEntropyLoss(), SHAPE, CLASSES, sample_size=2, device_type="cpu"
    )
    with pytest.raises(SpecError, match="cannot be rebuilt"):
        DefectiveTransformer(smoothed)
    with pytest.raises(InputSizeError, match="channels last"):
        DefectiveTransformer(plain(channels_first=False))
