from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dcn_plugin.attacks import CW, PGD, Attack, AttackRun, BoundaryAttack, EnsembleSource, HopSkipJump
from dcn_plugin.attacks.dtypes import model_dtype, rounded
from tests.toys import images, linear_model

HALF = (torch.bfloat16, torch.float16)
ATTACKS: dict[str, Callable[[], Attack]] = {
    "pgd": lambda: PGD(0.3, steps=20),
    "cw": lambda: CW(steps=40, step_size=0.05, c_start=0.1, bisections=1),
    "boundary": lambda: BoundaryAttack(max_queries=120),
    "hopskipjump": lambda: HopSkipJump(max_queries=160, initial_probes=30),
    "hopskipjump, linf": lambda: HopSkipJump(max_queries=160, norm="linf", initial_probes=30),
}

every_attack = pytest.mark.parametrize("name", ATTACKS)
both_halves = pytest.mark.parametrize("dtype", HALF)


def problem(dtype: torch.dtype, model_in: torch.dtype, *, count: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """A network, images and what it says about them."""
    model, clean = linear_model(16).to(model_in).eval(), images(count).to(dtype)
    with torch.no_grad():
        return model, clean, model(clean.to(model_in)).argmax(dim=1)


@every_attack
@both_halves
def test_images_in_half_precision_are_fooled_as_they_come_back(name: str, dtype: torch.dtype) -> None:
    model, clean, truth = problem(dtype, dtype)
    result = ATTACKS[name]()(model, clean, truth)
    assert result.images.dtype == dtype
    assert result.fooled.all()
    with torch.no_grad():
        assert not (model(result.images).argmax(dim=1) == truth).any()


@every_attack
@pytest.mark.parametrize("model_in", [*HALF, torch.float64])
def test_a_network_is_asked_in_its_own_dtype_and_images_keep_theirs(name: str, model_in: torch.dtype) -> None:
    model, clean, truth = problem(torch.float32, model_in)
    result = ATTACKS[name]()(model, clean, truth)
    assert result.images.dtype == torch.float32
    assert result.fooled.all()
    with torch.no_grad():
        assert not (model(result.images.to(model_in)).argmax(dim=1) == truth).any()


@pytest.mark.parametrize(
    "attack", [BoundaryAttack(max_queries=1000), HopSkipJump(max_queries=800)], ids=["boundary", "hopskipjump"]
)
def test_walks_on_a_grid_of_bfloat16_come_nearly_as_close_as_those_in_float32(attack: Attack) -> None:
    """A bfloat16 pixel next to 1 is 1/256 from its neighbour: steps below that must add up all the same."""
    model, clean, truth = problem(torch.bfloat16, torch.float32, count=24)
    half, full = (attack(model, given, truth).median_distance for given in (clean, clean.float()))
    assert half < 2 * full


@both_halves
def test_small_steps_add_up_although_the_images_cannot_hold_one_of_them(dtype: torch.dtype) -> None:
    model = linear_model(16).to(dtype)
    clean = torch.full((2, 1, 4, 4), 0.9).to(dtype)
    moved = PGD(0.05, steps=100)(model, clean, torch.zeros(2, dtype=torch.int64)).images.float() - clean.float()
    assert float(moved.abs().max()) > 0.04


@given(
    seed=st.integers(0, 999),
    eps=st.floats(1e-4, 1),
    dtype=st.sampled_from(HALF),
    norm=st.sampled_from(["linf", "l2"]),
)
def test_rounding_does_not_leave_the_ball_and_moves_no_pixel_by_more_than_one_value(
    seed: int, eps: float, dtype: torch.dtype, norm: str
) -> None:
    clean = images(3, seed=seed).to(dtype)
    gap = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    gap = gap.sign() * eps if norm == "linf" else gap / gap.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * eps
    adversarial = (clean.float() + gap).clamp(0, 1)
    found = rounded(adversarial, clean, eps=eps, norm=norm)
    assert found.dtype == dtype
    moved = found.double() - clean.double()
    size = moved.abs().max() if norm == "linf" else moved.flatten(1).norm(dim=1).max()
    assert float(size) <= eps * (1 + 1e-6)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert ((found.double() - adversarial.double()).abs() <= torch.finfo(dtype).eps).all()
    # Without a ball, and in the dtype that is there already, it is what torch does.
    assert torch.equal(rounded(adversarial, clean, eps=None, norm=norm), adversarial.to(dtype))
    assert rounded(adversarial, clean.float(), eps=eps, norm=norm) is adversarial


@pytest.mark.parametrize("eps", [0.004, 0.05])
def test_pgd_on_bfloat16_images_stays_within_eps_exactly(eps: float) -> None:
    model, clean, truth = problem(torch.bfloat16, torch.bfloat16)
    moved = PGD(eps, steps=3)(model, clean, truth).images.double() - clean.double()
    assert 0 < float(moved.abs().max()) <= eps


def test_an_attack_of_ones_own_walks_in_float32_too() -> None:
    class Half(Attack):
        def perturb(self, run: AttackRun) -> Tensor:
            assert run.images.dtype == torch.float32
            assert run.logits(run.images).dtype == torch.float32
            return (run.images + 0.1).clamp(max=1)

    model, clean, truth = problem(torch.bfloat16, torch.bfloat16)
    found = Half(eps=None)(model, clean, truth).images
    assert torch.equal(found, (clean.float() + 0.1).clamp(max=1).bfloat16())


def test_the_members_of_an_ensemble_are_asked_in_their_own_dtypes() -> None:
    members = [linear_model(16), linear_model(16, seed=1).bfloat16(), linear_model(16, seed=2).double()]
    source, clean = EnsembleSource(members).eval(), images(8)
    with torch.no_grad():
        said = source(clean)
        expected = sum(member(clean.to(model_dtype(member))).double() / 3 for member in members)
    torch.testing.assert_close(said.double(), expected, rtol=1e-6, atol=1e-6)
    truth = said.argmax(dim=1)
    assert PGD(0.4, steps=5)(source, clean, truth).fooled.all()
    assert BoundaryAttack(max_queries=60)(source, clean, truth).fooled.all()


def test_a_model_has_a_dtype_where_all_its_parameters_agree() -> None:
    assert model_dtype(linear_model(4).half()) == torch.float16
    assert model_dtype(nn.Flatten()) is None
    assert model_dtype(nn.ModuleList([linear_model(4), linear_model(4).double()])) is None
