from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dcn_plugin.attacks import PGD, Attack
from dcn_plugin.data import load_digits
from dcn_plugin.errors import SpecError, WeakAttackWarning
from dcn_plugin.pretrained import load_pretrained
from tests.toys import DoNothing, ModeNet, images, linear_model


def assert_attack_works(attack: Attack) -> None:
    """What every attack of loss-ascending kind must achieve on a network that is right about its images."""
    model = ModeNet().eval()
    clean = images(64)
    with torch.no_grad():
        truth = model(clean).argmax(1)
    result = attack(model, clean, truth)
    assert bool(result.correct.all())
    assert result.fooled.float().mean() > 0.6
    with torch.no_grad():
        losses = [F.cross_entropy(model(x), truth, reduction="none") for x in (clean, result.images)]
    assert (losses[1] >= losses[0]).float().mean() > 0.95


@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_fools_a_network(random_start: bool) -> None:
    assert_attack_works(PGD(0.3, steps=10, random_start=random_start))


def test_an_attack_that_does_nothing_fails_that_test() -> None:
    with pytest.raises(AssertionError):
        assert_attack_works(DoNothing(eps=0.3))


@pytest.mark.filterwarnings("ignore::dcn_plugin.errors.WeakAttackWarning")  # any step size goes
@given(
    eps=st.floats(1e-4, 1),
    steps=st.integers(1, 4),
    step_size=st.none() | st.floats(1e-4, 2),
    random_start=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_the_result_lies_in_the_ball_and_in_the_range(
    eps: float, steps: int, step_size: float | None, random_start: bool, seed: int
) -> None:
    clean = images(6, seed=seed % 1000)
    attack = PGD(eps, steps=steps, step_size=step_size, random_start=random_start, seed=seed)
    found = attack(linear_model(16), clean, torch.arange(6) % 3).images
    assert found.shape == clean.shape
    assert found.dtype == clean.dtype
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - clean).abs().max() <= eps + 1e-6


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_on_a_linear_model_the_result_is_the_exact_worst_corner_of_the_ball(steps: int) -> None:
    # Two classes: the loss is monotone along sign(w_other - w_true), so the maximum over the box is its corner.
    model = linear_model(16, classes=2, dtype=torch.float64)
    clean, truth = images(10, dtype=torch.float64), torch.arange(10) % 2
    weight = dict(model.named_parameters())["1.weight"].detach()
    direction = (weight[1 - truth] - weight[truth]).sign().view_as(clean)
    corner = (clean + 0.1 * direction).clamp(0, 1)
    found = PGD(0.1, steps=steps)(model, clean, truth).images
    torch.testing.assert_close(found, corner, rtol=0, atol=1e-12)


def test_it_agrees_with_a_plain_loop_written_from_the_paper() -> None:
    model = ModeNet().eval()
    clean, truth = images(7), torch.arange(7) % 3
    expected = []
    for x, y in zip(clean, truth, strict=True):
        adversarial = x[None].clone()
        for _ in range(4):
            adversarial.requires_grad_()
            F.cross_entropy(model(adversarial), y[None]).backward()
            moved = adversarial.detach() + 0.03 * adversarial.grad.sign()  # type: ignore[union-attr]
            adversarial = (x + (moved - x).clamp(-0.1, 0.1)).clamp(0, 1)
        expected.append(adversarial)
    found = PGD(0.1, steps=4, step_size=0.03)(model, clean, truth).images
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("random_start", [False, True])
def test_the_batch_size_does_not_change_a_bit_in_float64(random_start: bool) -> None:
    model = ModeNet(dtype=torch.float64)
    clean, truth = images(64, dtype=torch.float64), torch.arange(64) % 3
    attack = PGD(0.1, steps=5, random_start=random_start, seed=11)
    whole, *others = (attack(model, clean, truth, batch_size=size) for size in (64, 7, 1))
    for other in others:
        assert torch.equal(other.images, whole.images)
        assert torch.equal(other.fooled, whole.fooled)


def test_the_seed_decides_on_the_random_start_and_nothing_else_does() -> None:
    model, clean, truth = ModeNet(), images(5), torch.arange(5) % 3
    one, same, other = (
        PGD(0.1, steps=1, step_size=0.1, random_start=True, seed=s)(model, clean, truth).images for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_the_default_step_reaches_two_and_a_half_times_as_far_as_the_ball_and_the_papers_half_of_that() -> None:
    assert PGD(16 / 255, steps=20).step_size == pytest.approx(2 / 255)
    assert PGD(8 / 255, steps=10).reach == pytest.approx(20 / 255)
    assert PGD(1.0, steps=1).step_size == 2  # further than any pixel can go
    assert PGD.paper(16 / 255).step_size == pytest.approx(1 / 255)
    assert PGD.paper(32 / 255, steps=40).step_size == pytest.approx(1 / 255)
    with pytest.raises(SpecError, match="step"):
        PGD.paper(0.1, steps=0)


def test_the_longer_step_finds_what_the_papers_leaves() -> None:
    net, digits = load_pretrained("digits_resnet.standard"), load_digits(size=16).test.subset(torch.arange(100))
    longer, shorter = (make(0.1, steps=10)(net, digits.images, digits.labels).fooled for make in (PGD, PGD.paper))
    assert int((longer & ~shorter).sum()) > int((shorter & ~longer).sum())


def test_one_step_is_fgsm() -> None:
    model, clean, truth = ModeNet().eval(), images(5), torch.arange(5) % 3
    leaf = clean.clone().requires_grad_()
    F.cross_entropy(model(leaf), truth).backward()
    expected = (clean + 0.05 * leaf.grad.sign()).clamp(0, 1)  # type: ignore[union-attr]
    torch.testing.assert_close(PGD(0.05, steps=1)(model, clean, truth).images, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("random_start", [False, True])
def test_steps_that_do_not_reach_the_edge_of_the_ball_are_warned_about_before_the_run(random_start: bool) -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("asked")

    weak = PGD(0.2, steps=4, step_size=0.04, random_start=random_start)
    with (
        pytest.raises(AssertionError, match="asked"),
        pytest.warns(WeakAttackWarning, match=r"= 0\.16 is below eps = 0\.2"),
    ):
        weak(Never(), images(2), torch.zeros(2, dtype=torch.int64))


@given(eps=st.floats(1e-6, 1), steps=st.integers(1, 1000))
def test_steps_of_eps_over_steps_reach_it_whatever_is_rounded(eps: float, steps: int) -> None:
    for attack in (PGD(eps, steps=steps, step_size=eps / steps), PGD(eps, steps=steps)):
        attack._warn_if_weak()


def test_half_precision_stays_half_precision() -> None:
    model = nn.Sequential(linear_model(16).to(torch.bfloat16))
    found = PGD(0.1, steps=2)(model, images(3).bfloat16(), torch.arange(3)).images
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"step_size": 0.0}, {"step_size": float("nan")}, {"seed": -1}, {"seed": 2**64}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        PGD(0.1, **settings)  # type: ignore[arg-type]
