from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.data import ImageSet
from dcn_plugin.errors import ModelOutputError, SpecError
from dcn_plugin.training import TrainConfig, isolated_rng, train
from tests.toys import SmallNet, image_set, images, linear_model

CONFIG = TrainConfig(epochs=3, batch_size=8, lr=0.05, shift=1, seed=4)


def separable(count: int = 60) -> ImageSet:
    """The class is the brightest of three rows."""
    x = images(count, shape=(1, 3, 4)) * 0.5
    labels = torch.arange(count) % 3
    x[torch.arange(count), 0, labels] += 0.5
    return ImageSet(x, labels, 3, "rows")


def test_training_learns_what_can_be_learned() -> None:
    model, data = linear_model(12, dtype=torch.float32), separable()
    result = train(model, data, TrainConfig(epochs=15, batch_size=10, lr=0.1))
    with torch.no_grad():
        assert (model(data.images).argmax(1) == data.labels).float().mean() > 0.95
    assert result.losses[-1] < 0.5 * result.losses[0]
    assert (result.steps, len(result.losses)) == (90, 15)


def test_the_same_seed_gives_bit_equal_weights_and_another_seed_others() -> None:
    found = []
    for seed in (4, 4, 5):
        model = SmallNet()
        train(model, image_set(40), dataclasses.replace(CONFIG, seed=seed))
        found.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_the_global_generator_is_left_alone_and_has_no_say_not_even_in_dropout() -> None:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        model = SmallNet()
        train(model, image_set(40), CONFIG)
        found.append(model.head.weight)
        torch.manual_seed(seed)
        SmallNet()  # its constructor draws
        torch.manual_seed(seed)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0], found[1])


def test_training_itself_draws_nothing_from_the_global_generator() -> None:
    model = SmallNet()
    before = torch.get_rng_state()
    train(model, image_set(40), CONFIG)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fails", [False, True])
def test_training_flags_come_back_and_the_model_trains_in_between(fails: bool) -> None:
    model = SmallNet().eval()
    model.norm.train()
    before = [module.training for module in model.modules()]
    during: list[bool] = []

    def watch(module: nn.Module, *_: Any) -> None:
        during.append(module.training)
        if fails and len(during) == 3:
            raise KeyboardInterrupt

    model.register_forward_hook(watch)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            train(model, image_set(40), CONFIG)
    else:
        train(model, image_set(40), CONFIG)
    assert all(during)
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_weights_stay_as_they_are() -> None:
    model = SmallNet()
    kept = model.conv.weight.clone()
    train(model, image_set(40), CONFIG)
    assert torch.equal(model.conv.weight, kept)


def test_it_takes_the_steps_of_a_plain_loop_written_out() -> None:
    data = image_set(12, shape=(1, 3, 4))
    config = TrainConfig(epochs=2, batch_size=4, lr=0.1, label_smoothing=0.1, weight_decay=0.01, warmup=0.4, seed=1)
    model, expected = linear_model(12), linear_model(12)
    train(model, data, config)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    # Six steps: the share done is 0, 0.2, 0.4, ..., 1; the top is reached at 0.4.
    shares = [1 / 25, (1 + 1 / 25) / 2, 1, *(_cosine(1, 1 / 250_000, k / 3) for k in (1, 2, 3))]
    step = 0
    for _ in range(2):
        order = torch.randperm(12, generator=generator)
        for start in (0, 4, 8):
            chosen = order[start : start + 4]
            optimizer.param_groups[0]["lr"] = 0.1 * shares[step]
            loss = nn.functional.cross_entropy(expected(data.images[chosen]), data.labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


def _cosine(start: float, end: float, part: float) -> float:
    return float(start + (end - start) * (1 - torch.cos(torch.tensor(torch.pi * part))) / 2)


def test_a_loss_that_is_no_number_any_more_stops_the_training_by_name() -> None:
    class Exploding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * self.scale * float("inf")

    with pytest.raises(ModelOutputError, match="lower lr"):
        train(Exploding(), image_set(20), CONFIG)


def test_a_progress_bar_shows_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    train(SmallNet(), image_set(20), CONFIG, name="mine")
    assert capsys.readouterr() == ("", "")
    train(SmallNet(), image_set(20), CONFIG, progress=True, name="mine")
    out, err = capsys.readouterr()
    assert out == ""
    assert "mine" in err


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"warmup": 0.0},
        {"warmup": 1.0},
        {"momentum": 1.0},
        {"momentum": 0.0},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"shift": -1},
        {"seed": -1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(change: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="training option"):
        TrainConfig(**change)


def test_one_image_is_too_little() -> None:
    with pytest.raises(SpecError, match="two images"):
        train(SmallNet(), image_set(1), CONFIG)


def test_isolated_rng_seeds_inside_and_restores_after_an_exception() -> None:
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with pytest.raises(RuntimeError, match="injected"), isolated_rng(3):
            draws.append(torch.rand(3))
            raise RuntimeError("injected")
        torch.rand(1)
        torch.set_rng_state(before)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(torch.get_rng_state(), before)
