from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.errors import SpecError
from dcn_plugin.training import TrainConfig, smoothing_for

PAPER = TrainConfig.paper_cifar()


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"epochs": 3.0},
        {"epochs": True},
        {"batch_size": 1},
        {"batch_size": "8"},
        {"schedule": "cosine"},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": None},
        {"warmup": 0.0},
        {"warmup": 1.0},
        {"milestones": (2,)},
        {"schedule": "steps", "milestones": (0,)},
        {"schedule": "steps", "milestones": (4, 4)},
        {"schedule": "steps", "milestones": (12,)},
        {"schedule": "steps", "milestones": [4]},
        {"schedule": "steps", "milestones": (4.0,)},
        {"gamma": 0.0},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"nesterov": 1},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"shift": -1},
        {"shift": 4, "min_scale": 0.5},
        {"flip": "yes"},
        {"min_scale": 0.0},
        {"pca_color": -0.1},
        {"pca_color": float("inf")},
        {"ema_decay": 1.0},
        {"clip_norm": 0.0},
        {"gradual": "cubic"},
        {"gradual": True},
        {"gradual_share": 0.0},
        {"gradual_share": 1.5},
        {"gradual_share": "half"},
        {"gradual_order": "top-down"},
        {"gradual_start": 0.0},
        {"gradual_start": 1.1},
        {"select": "best"},
        {"seed": -1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="training option (" + "|".join([*change, "nesterov"]) + ") is"):
        TrainConfig(**change)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig.fast(),
        PAPER,
        TrainConfig.paper_mnist(),
        TrainConfig(gradual="cosine", gradual_share=0.3, gradual_order="bottom-up", gradual_start=0.9),
        TrainConfig(ema_decay=0.99, clip_norm=1, min_scale=0.08, pca_color=0.1, select="test", amp=True),
    ],
)
def test_a_configuration_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_json(config.to_json()) == config


def test_younger_options_stand_in_the_text_only_where_they_are_used() -> None:
    names = {item.name for item in dataclasses.fields(TrainConfig)}
    gradual = {name for name in names if name.startswith("gradual")}
    always = names - gradual - {"pca_color", "engine", "norm_statistics"}
    assert json.loads(TrainConfig().to_json()).keys() == always
    assert json.loads(TrainConfig(pca_color=0.1).to_json()).keys() == always | {"pca_color"}
    assert json.loads(TrainConfig(engine="auto").to_json()).keys() == always | {"engine"}
    assert json.loads(TrainConfig(gradual="linear").to_json()).keys() == always | {"gradual"}


@pytest.mark.parametrize("text", ["", "[]", "3", '{"epoch": 3}', '{"epochs": 0}', '{"milestones": 3}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        TrainConfig.from_json(text)


def test_the_papers_settings_are_those_of_its_code() -> None:
    for config, epochs, stones, shift in ((PAPER, 350, (150, 250), 4), (TrainConfig.paper_mnist(), 50, (20, 40), 0)):
        assert (config.epochs, config.milestones, config.shift, config.flip) == (epochs, stones, shift, True)
        assert (config.schedule, config.lr, config.gamma, config.batch_size) == ("steps", 0.1, 0.1, 128)
        assert (config.momentum, config.nesterov, config.weight_decay) == (0.9, False, 5e-4)
        assert config.label_smoothing == 0


def test_a_schedule_is_stretched_with_its_milestones() -> None:
    assert PAPER.lasting(70) == dataclasses.replace(PAPER, epochs=70, milestones=(30, 50))
    assert PAPER.lasting(350) == PAPER
    assert TrainConfig.fast().lasting(3).epochs == 3
    with pytest.raises(SpecError, match="milestones"):
        PAPER.lasting(2)


def test_smoothing_gives_the_paper_its_targets() -> None:
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(6)
    targets = torch.full((6, 10), 0.1 / 9, dtype=torch.float64)
    targets[torch.arange(6), labels] = 0.9
    by_hand = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert smoothing_for(0.9, 10) == pytest.approx(1 / 9)
    torch.testing.assert_close(F.cross_entropy(logits, labels, label_smoothing=smoothing_for(0.9, 10)), by_hand)


@given(true_class=st.floats(0.5, 1), num_classes=st.integers(2, 1000))
def test_smoothing_is_exact_for_any_target(true_class: float, num_classes: int) -> None:
    smoothing = smoothing_for(true_class, num_classes)
    assert 1 - smoothing + smoothing / num_classes == pytest.approx(true_class)


@pytest.mark.parametrize(("true_class", "num_classes"), [(0.05, 10), (1.1, 10), (0.9, 1)])
def test_a_target_that_is_none_is_refused(true_class: float, num_classes: int) -> None:
    with pytest.raises(SpecError, match="target probability"):
        smoothing_for(true_class, num_classes)
