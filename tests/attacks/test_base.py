from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dcn_plugin.attacks import CW, PGD, Attack, AttackRun, HopSkipJump
from dcn_plugin.errors import ImageRangeError, ModelChangedError, SpecError
from tests.toys import ModeNet, images, linear_model


class Add(Attack):
    """Adds a constant, whatever the ball says."""

    def __init__(self, amount: float, *, eps: float | None = 0.1) -> None:
        super().__init__(eps=eps)
        self.amount = amount

    def perturb(self, run: AttackRun) -> Tensor:
        return run.images + self.amount


class Broken(Attack):
    """Fails in the middle, after it has asked for a gradient."""

    def perturb(self, run: AttackRun) -> Tensor:
        run.loss_gradient(run.images)
        raise RuntimeError("injected")


def labels(count: int) -> Tensor:
    return torch.arange(count) % 3


def state_of(model: nn.Module) -> tuple[list[bool], list[bool], list[Tensor | None], list[Tensor]]:
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        [tensor.clone() for tensor in model.state_dict().values()],
    )


def same_state(model: nn.Module, before: tuple[list[bool], list[bool], list[Tensor | None], list[Tensor]]) -> bool:
    after = state_of(model)
    return after[:3] == before[:3] and all(map(torch.equal, after[3], before[3]))


@pytest.mark.parametrize("attack", [PGD(0.1, steps=2, random_start=True), Broken(eps=0.1)], ids=["ends", "raises"])
def test_the_model_and_the_global_generator_come_back_as_they_were(attack: Attack) -> None:
    model = ModeNet()
    model.train()
    model.frozen.eval()  # a frozen batch norm must not be thawed
    before, rng = state_of(model), torch.get_rng_state()
    if isinstance(attack, Broken):
        with pytest.raises(RuntimeError, match="injected"):
            attack(model, images(5), labels(5))
    else:
        attack(model, images(5), labels(5))
    assert same_state(model, before)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("what", ["mode", "weight", "hook", "module"])
def test_an_attack_that_changes_the_network_is_named(what: str) -> None:
    def change(model: ModeNet) -> None:
        if what == "mode":
            model.norm.train()
        elif what == "weight":
            model.head.weight.data.mul_(2)
            model.head.weight.zero_()
        elif what == "hook":
            model.conv.register_forward_hook(lambda *_: None)
        else:
            model.drop = nn.Dropout(0.1)

    class Editor(Attack):
        def perturb(self, run: AttackRun) -> Tensor:
            assert isinstance(run.model, ModeNet)
            change(run.model)
            return run.images

    part = {"mode": "norm", "weight": "head.weight", "hook": "conv", "module": "drop"}[what]
    with pytest.raises(ModelChangedError, match=rf"Editor changed the network .*'{part}'"):
        Editor(eps=0.1)(ModeNet(), images(3), labels(3))


def test_a_network_that_counts_its_calls_in_a_buffer_is_not_blamed_on_the_attack() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = linear_model(16)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            logits: Tensor = self.model(x)
            return logits

    assert PGD(0.1, steps=2)(Called(), images(3), labels(3)).backward_passes.tolist() == [2, 2, 2]


def test_the_model_runs_in_eval_mode_during_the_attack() -> None:
    seen: list[bool] = []
    model = ModeNet().train()
    model.register_forward_hook(lambda module, _args, _out: seen.extend(m.training for m in module.modules()))
    PGD(0.1, steps=1)(model, images(2), labels(2))
    assert seen
    assert not any(seen)


def test_the_input_is_not_written_to() -> None:
    clean, truth = images(5), labels(5)
    kept = clean.clone(), truth.clone()
    PGD(0.3, steps=3)(linear_model(16), clean, truth)
    assert torch.equal(clean, kept[0])
    assert torch.equal(truth, kept[1])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_an_attack_works_where_the_caller_switched_gradients_off(context: type[torch.no_grad]) -> None:
    model = linear_model(16)
    expected = PGD(0.3, steps=3)(model, images(5), labels(5)).images
    with context():
        found = PGD(0.3, steps=3)(model, images(5), labels(5)).images
    assert torch.equal(found, expected)


def test_fooled_counts_only_images_that_were_right_before() -> None:
    model = linear_model(16)
    clean = images(60)
    truth = labels(60)
    result = PGD(0.3, steps=5)(model, clean, truth)
    with torch.no_grad():
        before, after = model(clean).argmax(1) == truth, model(result.images).argmax(1) == truth
    assert torch.equal(result.correct, before)
    assert torch.equal(result.fooled, before & ~after)
    assert 0 < result.fooled.sum() <= before.sum() < 60


def test_samples_without_a_gradient_are_counted() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # Above one half the logits do not depend on the image any more.
            return torch.stack([x.flatten(1).sum(1).clamp(max=8), torch.zeros(len(x))], dim=1)

    clean = torch.cat([torch.full((2, 1, 4, 4), 0.1), torch.full((3, 1, 4, 4), 0.9)])
    result = PGD(0.1, steps=2)(Flat(), clean, torch.zeros(5, dtype=torch.int64))
    assert result.zero_gradient.tolist() == [False, False, True, True, True]
    assert torch.equal(result.images[2:], clean[2:])


class Both(Attack):
    """Asks three images for logits, two of them for a gradient twice, and one for a gradient of nothing it uses."""

    def perturb(self, run: AttackRun) -> Tensor:
        run.logits(run.images[:3], np.array([0, 1, 2]))
        for _ in range(2):
            leaf = run.images[:2].clone().requires_grad_()
            logits = run.forward(leaf, np.array([0, 1]))
            assert isinstance(logits, Tensor)
            torch.autograd.grad(logits.sum(), leaf)
        run.forward(run.images[:1].clone().requires_grad_(), np.array([0]))
        return run.images


def test_forward_and_backward_passes_are_counted_apart() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.asked, self.returned = linear_model(16), 0, 0

        def forward(self, x: Tensor) -> Tensor:
            self.asked += len(x)
            if x.requires_grad:
                x.register_hook(self.note)
            logits: Tensor = self.model(x)
            return logits

        def note(self, gradient: Tensor) -> None:
            self.returned += len(gradient)

    model, clean = Counted(), images(4)
    result = Both(eps=None)(model, clean, model.model(clean).argmax(1))
    # Beside what it asks itself: the check of the clean image and that of the result.
    assert result.queries.tolist() == [2 + 1 + 2 + 1, 2 + 1 + 2, 2 + 1, 2]
    assert result.backward_passes.tolist() == [2, 2, 0, 0]
    assert (int(result.queries.sum()), int(result.backward_passes.sum())) == (model.asked, model.returned)


def test_an_attack_of_gradients_takes_one_a_step_and_one_of_decisions_none() -> None:
    model, clean = linear_model(16), images(6)
    truth = model(clean).argmax(1)
    assert PGD(0.1, steps=7)(model, clean, truth).backward_passes.tolist() == [7] * 6
    assert not HopSkipJump(max_queries=60)(model, clean, truth).backward_passes.any()
    result = CW(steps=5, bisections=1)(model, clean, truth)
    # CW asks for nothing but gradients between the two checks.
    assert torch.equal(result.backward_passes, result.queries - 2)


def test_an_attack_that_leaves_its_ball_or_the_range_is_stopped() -> None:
    grey = torch.full((3, 1, 4, 4), 0.5)
    Add(0.1)(linear_model(16), grey, labels(3))
    with pytest.raises(ImageRangeError, match="eps-ball"):
        Add(0.2)(linear_model(16), grey, labels(3))
    with pytest.raises(ImageRangeError, match="range of pixels"):
        Add(0.6, eps=None)(linear_model(16), grey, labels(3))


@given(amount=st.floats(0.001, 0.2), eps=st.floats(0.001, 0.2))
def test_the_ball_is_checked_at_its_very_edge(amount: float, eps: float) -> None:
    grey = torch.full((2, 1, 4, 4), 0.5)
    inside = amount <= eps
    if abs(amount - eps) < 1e-6:
        return
    if inside:
        Add(amount, eps=eps)(linear_model(16), grey, labels(2))
    else:
        with pytest.raises(ImageRangeError):
            Add(amount, eps=eps)(linear_model(16), grey, labels(2))


@pytest.mark.parametrize("eps", [0, -0.1, 1.5, float("nan"), float("inf")])
def test_an_eps_that_is_no_radius_is_refused(eps: float) -> None:
    with pytest.raises(SpecError, match="eps"):
        PGD(eps, steps=1)


def test_settings_name_everything_a_record_needs() -> None:
    assert PGD(0.25, steps=5, seed=3).settings == {
        "eps": 0.25,
        "random_start": False,
        "seed": 3,
        "step_size": 0.125,
        "steps": 5,
    }
    assert repr(PGD(0.25, steps=5)) == "PGD(eps=0.25, random_start=False, seed=0, step_size=0.125, steps=5)"
