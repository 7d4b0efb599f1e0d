"""Our attacks as ART evasion attacks: the same images as without ART, for any estimator ART would take."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor import FeatureSqueezing
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import BlackBoxClassifier, PyTorchClassifier, SklearnClassifier
from art.exceptions import EstimatorError
from sklearn.linear_model import LogisticRegression
from torch import nn

from dcn_plugin.adapters.art import DcnAttack, DcnBoundaryAttack, DcnCW, DcnHopSkipJump, DcnPGD, DefectiveClassifier
from dcn_plugin.attacks import PGD, BoundaryAttack, HopSkipJump
from dcn_plugin.errors import ImageRangeError, LabelError, ModelOutputError, SpecError
from tests.adapters.art_nets import CLASSES, SHAPE, classifier, defective, predicted, samples

SETTINGS: dict[type[DcnAttack], dict[str, Any]] = {
    DcnPGD: {"eps": 0.3, "steps": 5},
    DcnCW: {"steps": 15, "step_size": 0.2, "c_start": 1.0, "c_max": 100.0, "bisections": 1},
    DcnBoundaryAttack: {"max_queries": 100},
    DcnHopSkipJump: {"max_queries": 100, "initial_probes": 10},
}
BRIDGES = list(SETTINGS)
DECISIONS = [DcnBoundaryAttack, DcnHopSkipJump]
GRADIENTS = [DcnPGD, DcnCW]


def bridge(kind: type[DcnAttack], estimator: Any, **options: Any) -> DcnAttack:
    return kind(estimator, **{**SETTINGS[kind], **options})


@pytest.mark.parametrize("kind", BRIDGES)
def test_a_bridge_gives_the_images_of_its_attack(kind: type[DcnAttack]) -> None:
    net, x = defective(), samples(10)
    attack = bridge(kind, classifier(net))
    y = predicted(attack.estimator, x)
    made = attack.generate(x, y)
    alone = kind.attack_type(**SETTINGS[kind])(net, torch.from_numpy(x), torch.from_numpy(y))
    assert made.dtype == np.float32 and made.shape == x.shape
    np.testing.assert_allclose(made, alone.images.numpy(), atol=1e-6)
    assert (predicted(attack.estimator, made) != y).sum() >= 5
    result = attack.result
    assert (
        result is not None and torch.equal(result.fooled, alone.fooled) and torch.equal(result.queries, alone.queries)
    )


@pytest.mark.parametrize("kind", BRIDGES)
def test_labels_may_be_numbers_one_hot_or_absent(kind: type[DcnAttack]) -> None:
    attack, x = bridge(kind, classifier()), samples(6)
    y = predicted(attack.estimator, x)
    made = [attack.generate(x, labels) for labels in (y, y[:, None], np.eye(CLASSES)[y], y.tolist(), None)]
    assert all(np.array_equal(made[0], other) for other in made[1:])
    assert not np.array_equal(made[0], x)


@pytest.mark.parametrize("kind", BRIDGES)
def test_an_image_that_is_misclassified_already_comes_back_clean_or_in_the_ball(kind: type[DcnAttack]) -> None:
    attack, x = bridge(kind, classifier()), samples(6)
    wrong = (predicted(attack.estimator, x) + 1) % CLASSES
    made = attack.generate(x, wrong)
    assert attack.result is not None and not attack.result.correct.any()
    if kind is DcnPGD:
        assert np.abs(made - x).max() <= 0.3 + 1e-6
    else:
        np.testing.assert_array_equal(made, x)


@pytest.mark.parametrize("kind", BRIDGES)
def test_the_estimator_comes_back_as_it_was(kind: type[DcnAttack]) -> None:
    net = defective()
    attack = bridge(kind, classifier(net))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    flags = [parameter.requires_grad for parameter in net.parameters()]
    attack.generate(samples(3))
    assert all(torch.equal(net.state_dict()[key], value) for key, value in state.items())
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("kind", BRIDGES)
def test_the_global_generators_are_left_alone(kind: type[DcnAttack]) -> None:
    # PyTorchClassifier.predict itself draws a number (its DataLoader's), so labels are given, or another estimator.
    attack = bridge(kind, classifier() if kind in GRADIENTS else everyone("black box"))
    before = repr(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002  (the global one)
    attack.generate(samples(3), np.array([0, 1, 2]))
    assert repr(np.random.get_state()) == before[0]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[1])


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_gradient_attack_restores_the_mode_of_every_module(kind: type[DcnAttack]) -> None:
    victim = classifier()
    victim.model.train()
    victim.model.frozen.eval()
    modes = [module.training for module in victim._model.modules()]
    bridge(kind, victim).generate(samples(3), np.zeros(3, dtype=int))
    assert [module.training for module in victim._model.modules()] == modes


@pytest.mark.parametrize("kind", BRIDGES)
def test_the_parameters_are_those_of_the_attack(kind: type[DcnAttack]) -> None:
    own = list(inspect.signature(kind.attack_type).parameters)
    assert kind.attack_params == [*own, "batch_size", "verbose"]
    assert list(inspect.signature(kind).parameters) == ["estimator", *own, "batch_size", "verbose"]
    attack = bridge(kind, classifier())
    assert all(hasattr(attack, name) for name in kind.attack_params)
    assert not attack.targeted


def test_set_params_changes_the_attack_and_refuses_what_it_does_not_know() -> None:
    victim, x = classifier(), samples(4)
    attack = DcnPGD(victim, 0.1)
    attack.set_params(eps=0.3, steps=5, batch_size=3)
    np.testing.assert_array_equal(attack.generate(x), bridge(DcnPGD, victim).generate(x))
    assert "eps=0.3" in repr(attack)
    with pytest.raises(ValueError, match="epss"):
        attack.set_params(epss=1)
    with pytest.raises(SpecError, match="eps"):
        attack.set_params(eps=8)
    with pytest.raises(SpecError, match="batch size"):
        bridge(DcnPGD, victim, batch_size=0)


@pytest.mark.parametrize("kind", BRIDGES)
def test_an_unknown_option_is_an_error(kind: type[DcnAttack]) -> None:
    with pytest.raises(TypeError, match="max_iter"):
        bridge(kind, classifier(), max_iter=3)
    with pytest.raises(TypeError, match="mask"):
        bridge(kind, classifier()).generate(samples(1), mask=1)


def test_an_attack_that_is_there_already_can_be_bridged() -> None:
    attack = DcnBoundaryAttack.from_attack(classifier(), BoundaryAttack.paper(steps=7, seed=3))
    assert attack.attack.settings == BoundaryAttack.paper(steps=7, seed=3).settings
    with pytest.raises(SpecError, match="PGD"):
        DcnBoundaryAttack.from_attack(classifier(), PGD(0.1))


def everyone(kind: str) -> Any:
    """Estimators that have no gradient, or no module: each for the same three classes."""
    logits = defective()
    if kind == "black box":
        return BlackBoxClassifier(
            lambda x: logits(torch.from_numpy(x)).detach().numpy(), SHAPE, CLASSES, clip_values=(0, 1)
        )
    if kind == "labels only":
        return BlackBoxClassifier(
            lambda x: np.eye(CLASSES)[logits(torch.from_numpy(x)).argmax(1).numpy()], SHAPE, CLASSES, clip_values=(0, 1)
        )
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 7)) * 5, np.arange(60) % CLASSES
    x += y[:, None]
    clip = (np.full(7, -30.0), np.linspace(30, 40, 7)) if kind == "features in ranges of their own" else (-30.0, 30.0)
    return SklearnClassifier(LogisticRegression().fit(x, y), clip_values=clip)


@pytest.mark.parametrize("bridge_kind", DECISIONS)
@pytest.mark.parametrize("kind", ["black box", "labels only", "scikit-learn", "features in ranges of their own"])
def test_a_decision_based_attack_takes_any_classifier(kind: str, bridge_kind: type[DcnAttack]) -> None:
    estimator = everyone(kind)
    if len(estimator.input_shape) == 3:
        x = samples(8)
    else:
        x = (np.random.default_rng(1).normal(size=(8, 7)) * 4).astype(np.float32)
    y = predicted(estimator, x)
    attack = bridge(bridge_kind, estimator)
    made = attack.generate(x)
    assert made.shape == x.shape and made.dtype == np.float32
    assert attack.result is not None
    fooled = attack.result.fooled.numpy()
    assert fooled.sum() >= 5
    assert (predicted(estimator, made)[fooled] != y[fooled]).all()
    np.testing.assert_array_equal(made[~fooled], x[~fooled])
    low, high = estimator.clip_values
    assert (made >= low).all() and (made <= high).all()
    if kind in ("black box", "labels only"):
        alone = bridge_kind.attack_type(**SETTINGS[bridge_kind])(defective(), torch.from_numpy(x), torch.from_numpy(y))
        np.testing.assert_allclose(made, alone.images.numpy(), atol=1e-6)


def test_a_start_without_success_comes_back_clean_and_is_flagged() -> None:
    always = BlackBoxClassifier(lambda x: np.eye(CLASSES)[np.zeros(len(x), int)], SHAPE, CLASSES, clip_values=(0, 1))
    x = samples(3)
    attack = bridge(DcnBoundaryAttack, always)
    np.testing.assert_array_equal(attack.generate(x), x)
    assert attack.result is not None and attack.result.status == ["no start"] * 3


def test_starts_can_be_given() -> None:
    net, x = defective(), samples(8)
    victim = classifier(net)
    y = predicted(victim, x)
    start = np.stack([next(s for s, said in zip(x, y, strict=True) if said != own) for own in y])
    attack = bridge(DcnHopSkipJump, victim)
    made = attack.generate(x, x_adv_init=start)
    alone = HopSkipJump(**SETTINGS[DcnHopSkipJump])
    expected = alone(net, torch.from_numpy(x), torch.from_numpy(y), starting_points=torch.from_numpy(start))
    np.testing.assert_allclose(made, expected.images.numpy(), atol=1e-6)
    with pytest.raises(SpecError, match="starts from the clean sample"):
        bridge(DcnPGD, victim).generate(x, x_adv_init=start)
    with pytest.raises(ImageRangeError, match="starts do not fit"):
        attack.generate(x, x_adv_init=start[:2])


@pytest.mark.parametrize("kind", GRADIENTS)
def test_a_gradient_attack_refuses_an_estimator_without_a_module(kind: type[DcnAttack]) -> None:
    with pytest.raises(EstimatorError, match="PyTorchClassifier"):
        bridge(kind, everyone("black box"))


@pytest.mark.parametrize("kind", GRADIENTS)
def test_the_preprocessing_of_the_estimator_is_part_of_the_model(kind: type[DcnAttack]) -> None:
    class Scaled(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.model((x - 0.4) / 0.5)  # type: ignore[no-any-return]

    x = samples(6)
    inside, outside = classifier(Scaled(defective())), classifier(preprocessing=(0.4, 0.5))
    np.testing.assert_allclose(bridge(kind, inside).generate(x), bridge(kind, outside).generate(x), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_called_fooled_is_fooled_for_the_classifier_itself(dtype: torch.dtype) -> None:
    estimator = DefectiveClassifier(
        defective().to(dtype),
        nn.CrossEntropyLoss(),
        SHAPE,
        CLASSES,
        clip_values=(0.0, 1.0),
        preprocessing=(0.1, 0.8),
        device_type="cpu",
    )
    x = samples(40)
    right = predicted(estimator, x)
    attack = bridge(DcnCW, estimator)
    adversarial = attack.generate(x, right)
    fooled = attack.result.fooled.numpy()
    assert fooled.sum() > 20
    assert not (predicted(estimator, adversarial) == right)[fooled].any()


class Paler(PreprocessorPyTorch):  # type: ignore[misc]
    """A preprocessing step in PyTorch."""

    def forward(self, x: Any, y: Any = None) -> Any:
        return x / 2, y


def test_preprocessing_that_has_no_gradient_is_refused_for_gradient_attacks_alone() -> None:
    x = samples(4)
    numpy_only = classifier(preprocessing_defences=FeatureSqueezing(clip_values=(0, 1), bit_depth=3))
    with pytest.raises(SpecError, match=r"cannot see through.*FeatureSqueezing"):
        bridge(DcnPGD, numpy_only).generate(x)
    assert np.abs(bridge(DcnBoundaryAttack, numpy_only).generate(x) - x).max() > 0
    assert np.abs(bridge(DcnPGD, classifier(preprocessing_defences=Paler("cpu"))).generate(x) - x).max() > 0


@pytest.mark.parametrize("kind", [DcnCW, *DECISIONS])
@pytest.mark.parametrize("clip", [(0.0, 255.0), (-1.0, 1.0)])
def test_samples_in_another_range_are_scaled(kind: type[DcnAttack], clip: tuple[float, float]) -> None:
    low, high = clip
    x = samples(6)
    scaled = low + x * (high - low)
    unit = bridge(kind, classifier())
    wide = bridge(kind, classifier(clip_values=clip, preprocessing=(low, high - low)))
    expected = low + unit.generate(x) * (high - low)
    made = wide.generate(scaled)
    assert unit.result is not None and wide.result is not None
    # Rounding may send a walk elsewhere; CW follows a gradient.
    if kind is DcnCW:
        np.testing.assert_allclose(made, expected, atol=1e-3 * (high - low))
    else:
        assert wide.result.fooled.sum() >= 4 and made.min() >= low and made.max() <= high
    assert not np.array_equal(made, scaled)


def test_an_eps_is_refused_where_it_would_be_ambiguous() -> None:
    with pytest.raises(SpecError, match="range of length 1"):
        bridge(DcnPGD, classifier(clip_values=(0.0, 255.0))).generate(samples(2) * 255)
    shifted = classifier(clip_values=(-0.5, 0.5), preprocessing=(-0.5, 1.0))
    expected = bridge(DcnPGD, classifier()).generate(samples(4))
    np.testing.assert_allclose(bridge(DcnPGD, shifted).generate(samples(4) - 0.5), expected - 0.5, atol=1e-5)


def test_samples_outside_of_the_range_are_refused() -> None:
    bare = classifier(clip_values=None)
    bridge(DcnPGD, bare).generate(samples(2))
    for estimator, named in ((bare, r"\[0, 1\]"), (classifier(), "clip_values")):
        for bad in (samples(2) * 2, samples(2) - 1, np.full((1, *SHAPE), np.nan)):
            with pytest.raises(ImageRangeError, match=named):
                bridge(DcnPGD, estimator).generate(bad, np.zeros(len(bad), dtype=int))
    with pytest.raises(ImageRangeError, match="no samples"):
        bridge(DcnPGD, bare).generate(samples(2)[:0])


@pytest.mark.parametrize("kind", BRIDGES)
@pytest.mark.parametrize("y", [[0, 1, 3], [0, -1, 1], [0, 1], [0.5, 1.0, 2.0], np.eye(4)[[0, 1, 3]]])
def test_labels_that_are_none_are_refused(kind: type[DcnAttack], y: Any) -> None:
    with pytest.raises(LabelError):
        bridge(kind, classifier()).generate(samples(3), y)


def test_an_estimator_that_returns_no_scores_is_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    one_column = PyTorchClassifier(net, nn.BCEWithLogitsLoss(), SHAPE, 2, device_type="cpu")
    with pytest.raises(ModelOutputError, match="one finite score a class"):
        bridge(DcnBoundaryAttack, one_column).generate(samples(2))


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("estimator", [PyTorchClassifier, DefectiveClassifier])
def test_a_model_in_another_dtype_is_attacked_in_its_own(kind: type[DcnAttack], estimator: Any) -> None:
    x, y = samples(4), np.zeros(4, dtype=int)
    made = bridge(kind, classifier(defective().double(), estimator)).generate(x, y)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, bridge(kind, classifier()).generate(x, y), atol=1e-3)


def test_arts_plain_classifier_is_attacked_as_the_defective_one_is() -> None:
    net, x = defective(), samples(6)
    for kind in BRIDGES:
        made = [bridge(kind, classifier(net, k)).generate(x) for k in (PyTorchClassifier, DefectiveClassifier)]
        np.testing.assert_array_equal(*made)
