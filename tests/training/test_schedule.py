from __future__ import annotations

import math

import pytest

from dcn_plugin.training import TrainConfig
from dcn_plugin.training.schedule import learning_rate


@pytest.mark.parametrize(
    ("config", "by_hand"),
    [
        (
            TrainConfig.paper_cifar(),
            {0: 0.1, 149: 0.1, 150: 0.01, 249: 0.01, 250: 0.001, 349: 0.001},
        ),
        (TrainConfig.paper_mnist(), {0: 0.1, 19: 0.1, 20: 0.01, 39: 0.01, 40: 0.001, 49: 0.001}),
    ],
    ids=["cifar", "mnist"],
)
def test_steps_fall_at_the_first_step_of_their_epoch(config: TrainConfig, by_hand: dict[int, float]) -> None:
    for epoch, lr in by_hand.items():
        for step in (7 * epoch, 7 * epoch + 6):
            assert learning_rate(config, step, 7) == pytest.approx(lr)


def test_one_cycle_has_its_values_at_start_top_middle_and_end() -> None:
    config = TrainConfig(epochs=3, lr=0.5, warmup=0.4)  # 11 steps an epoch: 33, the last is number 32
    by_hand = {0: 0.5 / 25, 32: 0.5 / 250_000}
    for step, lr in by_hand.items():
        assert learning_rate(config, step, 11) == pytest.approx(lr)
    values = [learning_rate(config, step, 11) for step in range(33)]
    top = values.index(max(values))
    assert top == 13  # 0.4 of 32 is 12.8
    assert values[:top] == sorted(values[:top]) and values[top:] == sorted(values[top:], reverse=True)
    halfway = 0.5 * (1 + 1 / 250_000) / 2
    assert learning_rate(TrainConfig(epochs=1, lr=0.5, warmup=0.5), 3, 5) == pytest.approx(halfway)


def test_one_step_in_all_is_the_start_of_the_cycle() -> None:
    assert math.isclose(learning_rate(TrainConfig(epochs=1, lr=0.5), 0, 1), 0.02)
