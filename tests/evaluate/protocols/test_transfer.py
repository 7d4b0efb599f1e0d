from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import PGD, EnsembleSource
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import LabelError, SpecError
from dcn_plugin.evaluate import AdversarialSet, measure_targets, transfer
from tests.toys import linear_model

ATTACK = PGD(0.15, steps=5)


def says(model: nn.Module, image: Tensor) -> int:
    with torch.no_grad():
        return int(model(image[None]).argmax())


def test_both_denominators_agree_with_a_slow_loop_over_single_images(
    models: Mapping[str, nn.Module], data: ImageSet
) -> None:
    made = AdversarialSet("a", models["a"], ATTACK, data)
    (result,) = measure_targets(made, {"b": models["b"]}, seed=0)
    counts = dict.fromkeys(("source right", "fooled", "clean", "counted", "defended", "correct"), 0)
    for clean, adversarial, label in zip(data.images, made.loaded.images, data.labels.tolist(), strict=True):
        source_right = says(models["a"], clean) == label
        fooled = source_right and says(models["a"], adversarial) != label
        target_right = says(models["b"], clean) == label
        target_still = says(models["b"], adversarial) == label
        counts["source right"] += source_right
        counts["fooled"] += fooled
        counts["clean"] += target_right
        counts["counted"] += fooled and target_right
        counts["defended"] += fooled and target_right and target_still
        counts["correct"] += target_still
    assert (
        result.n_source_correct,
        result.n_source_fooled,
        result.n_clean_correct,
        result.n_counted,
        result.n_defended,
        result.n_correct,
    ) == tuple(counts.values())
    assert 0 < result.n_defended < result.n_counted < result.n_total
    assert result.defense_rate == counts["defended"] / counts["counted"]
    assert result.accuracy_all == counts["correct"] / 80


def test_a_source_attacked_as_its_own_target_defends_nothing(models: Mapping[str, nn.Module], data: ImageSet) -> None:
    (result,) = transfer({"a": models["a"]}, {"a": models["a"]}, [ATTACK], data, seed=0)
    assert result.defense_rate == 0
    assert result.n_correct == result.n_source_correct - result.n_source_fooled  # type: ignore[operator]


def test_every_source_meets_every_attack_and_target_and_is_attacked_once_each(
    models: Mapping[str, nn.Module], data: ImageSet
) -> None:
    calls = []
    for name, model in models.items():
        model.register_forward_pre_hook(lambda _m, args, name=name: calls.append((name, args[0].requires_grad)))
    results = list(transfer(models, models, [ATTACK, PGD(0.05, steps=2)], data, seed=4))
    assert [(r.source, r.eps, r.target) for r in results] == [
        (source, eps, target) for source in "ab" for eps in (0.15, 0.05) for target in "ab"
    ]
    assert {r.seed for r in results} == {4}
    # One gradient a step, whatever the number of targets.
    assert [calls.count((name, True)) for name in "ab"] == [7, 7]


def test_a_target_with_too_few_classes_is_refused(models: Mapping[str, nn.Module], data: ImageSet) -> None:
    made = AdversarialSet("a", models["a"], ATTACK, data)
    with pytest.raises(LabelError):
        measure_targets(made, {"small": linear_model(16, classes=2)}, seed=0)


def test_a_target_that_gets_nothing_right_has_no_defence_rate(models: Mapping[str, nn.Module], data: ImageSet) -> None:
    class Wrong(nn.Module):
        """Right answers, shifted by one class."""

        def forward(self, x: Tensor) -> Tensor:
            found = (data.images[None] == x[:, None]).flatten(2).all(2).float().argmax(1)
            return torch.nn.functional.one_hot((data.labels[found] + 1) % 3, 3).float() * 5

    made = AdversarialSet("a", models["a"], ATTACK, data)
    (result,) = measure_targets(made, {"wrong": Wrong()}, seed=0)
    assert (result.n_clean_correct, result.n_counted, result.defense_rate) == (0, 0, None)


def test_the_record_says_which_data_and_attack(models: Mapping[str, nn.Module], data: ImageSet) -> None:
    result = next(iter(transfer(models, models, [ATTACK], data, seed=0)))
    assert (result.protocol, result.attack, result.steps, result.eps) == ("transfer", "PGD", 5, 0.15)
    assert result.attack_settings == ATTACK.settings
    assert (result.data, result.data_hash) == ("toy", data.content_hash)


def test_the_matrix_says_how_each_source_relates_to_each_target(
    models: Mapping[str, nn.Module], data: ImageSet
) -> None:
    other = {"a": models["a"], "deeper": nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))}
    found = {(r.source, r.target): r.relation for r in transfer(models, models | other, [ATTACK], data, seed=0)}
    assert found == {
        ("a", "a"): "same network",
        ("a", "b"): "other weights",
        ("a", "deeper"): "other network",
        ("b", "a"): "other weights",
        ("b", "b"): "same network",
        ("b", "deeper"): "other network",
    }


def test_the_batch_size_changes_no_count(models: Mapping[str, nn.Module], data: ImageSet) -> None:
    counts = [
        [
            (r.n_source_fooled, r.n_counted, r.n_defended, r.n_correct)
            for r in transfer(models, models, [ATTACK], data, seed=0, batch_size=size)
        ]
        for size in (7, 80, 256)
    ]
    assert counts[0] == counts[1] == counts[2]


def test_nothing_to_attack_or_to_measure_is_an_error(models: Mapping[str, nn.Module], data: ImageSet) -> None:
    for arguments in (({}, models, [ATTACK]), (models, {}, [ATTACK]), (models, models, [])):
        with pytest.raises(SpecError, match="There is no"):
            next(transfer(*arguments, data, seed=0))


def test_an_ensemble_source_relates_as_its_closest_member(models: Mapping[str, nn.Module], data: ImageSet) -> None:
    (result,) = transfer({"both": EnsembleSource(list(models.values()))}, {"b": models["b"]}, [ATTACK], data, seed=0)
    assert (result.source, result.relation) == ("both", "same network")
    assert result.n_source_fooled


def test_networks_in_half_precision_are_attacked_and_measured(models: Mapping[str, nn.Module], data: ImageSet) -> None:
    source, target = models["a"].bfloat16(), models["b"].half()
    (result,) = transfer({"a": source}, {"b": target}, [ATTACK], data, seed=0)
    assert result.largest_change == pytest.approx(0.15)
    assert result.n_source_fooled is not None and result.n_source_fooled > 20
    assert (result.hardware["dtype"], result.hardware["source_dtype"]) == ("float16", "bfloat16")
