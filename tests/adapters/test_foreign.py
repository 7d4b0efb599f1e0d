"""What every runner of another library's attacks shares, with a library of our own making."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.adapters._foreign import ForeignAttack
from dcn_plugin.attacks import AttackRun
from dcn_plugin.errors import ImageRangeError, SpecError, WeakAttackWarning
from tests.attack_oracles import Counting
from tests.toys import images, linear_model

Step = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Library(ForeignAttack):
    """Runs a function (probe, images, labels) -> images, as an attack of a library."""

    def __init__(self, step: Step, *, eps: float | None = 0.1, norm: str = "Linf", batch: int | None = None) -> None:
        super().__init__("Toy", library="toy 1", eps=eps, norm=norm, batch=batch, options={"steps": 1}, seed=0)
        self._step = step

    def _check_fit(self, run: AttackRun) -> None:
        pass

    def _build(self, probe: nn.Module, seed: int, run: AttackRun) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda clean, labels: self._step(probe, clean, labels)


def climb(probe: nn.Module, clean: Tensor, labels: Tensor) -> Tensor:
    """One step along the sign of the gradient."""
    leaf = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(probe(leaf), labels, reduction="sum"), leaf)
    return (clean + 0.1 * gradient.sign()).clamp(0, 1)


def shaken(probe: nn.Module, clean: Tensor, labels: Tensor) -> Tensor:
    """Random signs, from torch's global generator."""
    return (clean + 0.1 * torch.randn_like(clean).sign()).clamp(0, 1)


def truth_of(model: nn.Module, clean: Tensor) -> Tensor:
    with torch.no_grad():
        return model(clean).argmax(1)


def test_a_step_of_a_library_is_judged_and_counted_as_ours_are() -> None:
    model, clean = Counting(linear_model(16)), images(12)
    truth = truth_of(model.model, clean)
    truth[0] = (truth[0] + 1) % 3
    result = Library(climb)(model, clean, truth)
    assert result.fooled.any()
    assert not result.fooled[0]
    assert result.queries.tolist() == [2] + [3] * 11
    assert result.backward_passes.tolist() == [1] * 12
    assert int(result.queries.sum()) == model.rows


def test_pieces_draw_by_their_place_in_the_data_and_leave_the_global_generator_alone() -> None:
    model, clean = linear_model(16), images(16)
    truth, before = truth_of(model, clean), torch.get_rng_state()
    attack = Library(shaken, batch=4)
    whole = attack(model, clean, truth, batch_size=8).images
    later = attack(model, clean[8:], truth[8:], batch_size=4, first_index=8).images
    assert torch.equal(whole[8:], later)
    assert not torch.equal(whole[:4] - clean[:4], whole[4:8] - clean[4:8])
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(SpecError, match="multiples of 4"):
        attack(model, clean, truth, batch_size=6)
    with pytest.raises(SpecError, match="multiples of 4"):
        attack(model, clean, truth, batch_size=4, first_index=2)


@pytest.mark.parametrize(("eps", "norm"), [(0.05, "Linf"), (0.2, "L2")])
def test_an_attack_that_leaves_the_ball_of_its_norm_is_named(eps: float, norm: str) -> None:
    model, clean = linear_model(16), images(4)
    with pytest.raises(ImageRangeError, match="Toy left its eps-ball"):
        Library(climb, eps=eps, norm=norm)(model, clean, truth_of(model, clean))


def test_the_settings_are_the_options_and_where_they_come_from() -> None:
    assert Library(climb).settings == {
        "attack": "Toy", "batch": None, "eps": 0.1, "library": "toy 1", "norm": "Linf", "seed": 0, "steps": 1,
    }  # fmt: skip
    assert Library(climb).unkeyed == ()


def test_images_that_come_back_clean_are_told_as_the_failure_that_they_are() -> None:
    model, clean = linear_model(16), images(6)

    def half(probe: nn.Module, clean: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([climb(probe, clean, labels)[:3], clean[3:]])

    with pytest.warns(WeakAttackWarning, match="Toy: 3 of 6 images .* came back clean: it did not move them"):
        Library(half)(model, clean, truth_of(model, clean))
    with pytest.warns(WeakAttackWarning, match="found no adversarial image"):
        Library(lambda probe, clean, labels: clean, eps=None, norm="L2")(model, clean, truth_of(model, clean))


def test_nan_is_named_with_the_attack_that_returned_it() -> None:
    model, clean = linear_model(16), images(6)

    def broken(probe: nn.Module, clean: Tensor, labels: Tensor) -> Tensor:
        return torch.cat([clean[:5], clean[5:] * float("nan")])

    with pytest.raises(ImageRangeError, match="Toy returned NaN for 1 of 6 images"):
        Library(broken)(model, clean, truth_of(model, clean))
