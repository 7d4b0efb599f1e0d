from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import LabelError, SpecError
from dcn_plugin.evaluate import adversarial_set, measure_targets, transfer
from tests.toys import image_set, linear_model

ATTACK = PGD(0.15, steps=5)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """Two models that mostly agree, so that some attacks transfer and some do not."""
    a, b = linear_model(16, seed=0), linear_model(16, seed=1)
    with torch.no_grad():
        for mine, other in zip(b.parameters(), a.parameters(), strict=True):
            mine.lerp_(other, 0.6)
    return {"a": a, "b": b}


@pytest.fixture(scope="module")
def data(models: dict[str, nn.Module]) -> ImageSet:
    """Labels of which most are what "a" says, so that there is something to fool."""
    raw = image_set(80)
    with torch.no_grad():
        said = models["a"](raw.images).argmax(1)
    return ImageSet(raw.images, torch.where(torch.arange(80) % 5 == 0, raw.labels, said), 3, "toy")


def says(model: nn.Module, image: Tensor) -> int:
    with torch.no_grad():
        return int(model(image[None]).argmax())


def test_both_denominators_agree_with_a_slow_loop_over_single_images(
    models: dict[str, nn.Module], data: ImageSet
) -> None:
    made = adversarial_set("a", models["a"], ATTACK, data)
    (result,) = measure_targets(made, {"b": models["b"]}, seed=0)
    counts = dict.fromkeys(("source right", "fooled", "clean", "counted", "defended", "correct"), 0)
    for clean, adversarial, label in zip(data.images, made.images, data.labels.tolist(), strict=True):
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


def test_a_source_attacked_as_its_own_target_defends_nothing(models: dict[str, nn.Module], data: ImageSet) -> None:
    (result,) = transfer({"a": models["a"]}, {"a": models["a"]}, [ATTACK], data, seed=0)
    assert result.defense_rate == 0
    assert result.n_correct == result.n_source_correct - result.n_source_fooled  # type: ignore[operator]


def test_every_source_meets_every_attack_and_target_and_is_attacked_once_each(
    models: dict[str, nn.Module], data: ImageSet
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


def test_rounding_gives_images_of_256_levels_and_is_recorded(models: dict[str, nn.Module], data: ImageSet) -> None:
    made = adversarial_set("a", models["a"], ATTACK, data, rounding="8bit")
    plain = adversarial_set("a", models["a"], ATTACK, data)
    levels = made.images * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert (made.images - plain.images).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(made.fooled, plain.fooled)  # judged before rounding
    assert measure_targets(made, models, seed=0)[0].rounding == "8bit"
    with pytest.raises(SpecError, match="rounding"):
        adversarial_set("a", models["a"], ATTACK, data, rounding="16bit")  # type: ignore[arg-type]


def test_a_target_with_too_few_classes_is_refused(models: dict[str, nn.Module], data: ImageSet) -> None:
    made = adversarial_set("a", models["a"], ATTACK, data)
    with pytest.raises(LabelError):
        measure_targets(made, {"small": linear_model(16, classes=2)}, seed=0)


def test_a_target_that_gets_nothing_right_has_no_defence_rate(models: dict[str, nn.Module], data: ImageSet) -> None:
    class Wrong(nn.Module):
        """Right answers, shifted by one class."""

        def forward(self, x: Tensor) -> Tensor:
            found = (data.images[None] == x[:, None]).flatten(2).all(2).float().argmax(1)
            return torch.nn.functional.one_hot((data.labels[found] + 1) % 3, 3).float() * 5

    made = adversarial_set("a", models["a"], ATTACK, data)
    (result,) = measure_targets(made, {"wrong": Wrong()}, seed=0)
    assert (result.n_clean_correct, result.n_counted, result.defense_rate) == (0, 0, None)


def test_the_record_says_which_data_and_attack(models: dict[str, nn.Module], data: ImageSet) -> None:
    result = next(iter(transfer(models, models, [ATTACK], data, seed=0)))
    assert (result.protocol, result.attack, result.steps, result.eps) == ("transfer", "PGD", 5, 0.15)
    assert result.attack_settings == ATTACK.settings
    assert (result.data, result.data_hash) == ("toy", data.content_hash)
