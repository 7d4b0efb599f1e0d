from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcn_plugin.errors import SpecError
from dcn_plugin.models import cifar_resnet
from dcn_plugin.surgery import defectify
from dcn_plugin.surgery.inspection import verify
from dcn_plugin.training import (
    BASELINES,
    TrainConfig,
    apply_baseline,
    isolated_rng,
    madry,
    train,
    training_config,
    training_hook,
)
from dcn_plugin.training.checks import masks_hash
from tests.toys import image_set

CONFIG = TrainConfig(epochs=1, batch_size=8, lr=0.05, shift=1, flip=True)
DATA = image_set(16, shape=(1, 8, 8))


def network() -> nn.Module:
    with isolated_rng(0):
        return cifar_resnet((1, 1, 1, 1), num_classes=3, in_chans=1, width=4)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_trains_plain_and_with_defects_whose_masks_stay(name: str) -> None:
    attacked = [DATA.images] if name == "pubdef" else None
    for model in (network(), defectify(network(), "bottom", p=0.5, input_size=DATA.shape)):
        trained = apply_baseline(name, model)
        masks, before = masks_hash(trained), trained.fc.weight.clone()  # type: ignore[union-attr, operator]
        config = training_config(name, CONFIG, num_classes=3)
        train(trained, DATA, config, step_images=training_hook(name, adversarial=attacked))
        assert masks_hash(trained) == masks
        if masks:
            verify(trained)
        assert not torch.equal(trained.fc.weight, before)  # type: ignore[union-attr, arg-type]


def test_each_baseline_changes_its_one_thing() -> None:
    changes = {}
    for name in BASELINES:
        model = network()
        attacked = [DATA.images] if name == "pubdef" else None
        changes[name] = (
            apply_baseline(name, model) is not model,
            training_config(name, CONFIG, num_classes=3) != CONFIG,
            training_hook(name, adversarial=attacked) is not None,
        )
    assert changes == {
        "standard": (False, False, False),
        "spatial-dropout": (True, False, False),
        "dropblock": (True, False, False),
        "label-smoothing": (False, True, False),
        "madry": (False, False, True),
        "pubdef": (False, False, True),
    }


def test_label_smoothing_is_the_papers_target() -> None:
    config = training_config("label-smoothing", CONFIG, num_classes=10)
    assert dataclasses.replace(config, label_smoothing=0) == CONFIG
    logits, labels = torch.randn(5, 10, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    target = torch.full((5, 10), 0.1 / 9)
    target[torch.arange(5), labels] = 0.9
    slow = -(target * logits.log_softmax(1)).sum(1).mean()
    found = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    torch.testing.assert_close(found, slow)


def test_settings_replace_those_of_the_table() -> None:
    assert training_hook("madry") == madry(8 / 255, steps=7, step_size=2 / 255)
    assert training_hook("madry", settings={"eps": 0.3}) == madry(0.3, steps=7, step_size=0.075)
    made = training_hook("pubdef", adversarial=[DATA.images], settings={"sampling": "all"})
    assert "sampling='all'" in repr(made)


def test_the_table_cannot_be_changed_by_accident() -> None:
    with pytest.raises(TypeError):
        BASELINES["mine"] = BASELINES["standard"]  # type: ignore[index]
    with pytest.raises(TypeError):
        BASELINES["madry"].madry["eps"] = 1  # type: ignore[index]


def test_unknown_names_and_settings_are_refused_by_name() -> None:
    for call in (
        lambda: apply_baseline("dropout", network()),
        lambda: training_config("dropout", CONFIG, num_classes=3),
        lambda: training_hook("dropout"),
    ):
        with pytest.raises(SpecError, match=r"Unknown baseline.*spatial-dropout"):
            call()
    with pytest.raises(SpecError, match="eps, steps, step_size"):
        training_hook("madry", settings={"epsilon": 0.1})
    with pytest.raises(SpecError, match="none"):
        training_hook("dropblock", settings={"keep": 0.5})
    with pytest.raises(SpecError, match="'pubdef'"):
        training_hook("pubdef")
    with pytest.raises(SpecError, match="'pubdef'"):
        training_hook("madry", adversarial=[DATA.images])
