"""adv-lib's minimum-norm attacks: against exact distances, against adv-lib called directly, and their counts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import CW, PGD, AttackResult, BestOf
from dcn_plugin.errors import ImageRangeError, MissingExtraError, ModelOutputError, SpecError, WeakAttackWarning
from tests.attack_oracles import Counting, closest_boundary, grey, right
from tests.toys import images, linear_model

try:
    from dcn_plugin.adapters.adv_lib import MinimumNorm, minimum_norm_attacks, nearest_of_all
except MissingExtraError:
    pytest.skip("adv-lib is not installed", allow_module_level=True)

from dcn_plugin.adapters._adv_lib_table import KNOWN

CASES = [(name, norm) for name, entry in KNOWN.items() for norm in entry.norms]
# The median ratio to the exact distance of a linear model, with 150 gradients. DDN's steps are of a fixed share of eps.
SLACK = {
    ("DDN", "L2"): 1.1, ("ALMA", "L2"): 1.02, ("PDGD", "L2"): 1.3, ("FMN", "L2"): 1.001, ("APGD", "L2"): 1.02,
    ("PDGD", "Linf"): 1.1, ("FMN", "Linf"): 1.001, ("APGD", "Linf"): 1.02,
}  # fmt: skip
# FMN in L2 walks up to the boundary from inside, and on a linear model does not step over it for some images.
STAYS_INSIDE = ("FMN", "L2")
every_attack = pytest.mark.parametrize(("name", "norm"), CASES, ids=lambda value: value)


def build(name: str, norm: Any, steps: int = 150, **options: Any) -> MinimumNorm:
    return MinimumNorm(name, norm=norm, steps=20 if name == "APGD" else steps, **options)


def linear(count: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    model = linear_model(16)
    clean = grey(count, dtype=torch.float32)
    return model, clean, right(model, clean)


def exact(model: nn.Module, clean: Tensor, labels: Tensor, norm: str) -> Tensor:
    """Length of the smallest change; in L-inf by bisection over the corner that the linear model falls for first."""
    layer = list(model.modules())[-1]
    assert isinstance(layer, nn.Linear)
    if norm == "L2":
        return closest_boundary(layer, clean, labels).sqrt()
    weight, bias, x = layer.weight.detach().double(), layer.bias.detach().double(), clean.double().flatten(1)
    low, high = torch.zeros(len(x), dtype=torch.float64), torch.ones(len(x), dtype=torch.float64)
    for _ in range(60):
        middle, fooled = (low + high) / 2, torch.zeros(len(x), dtype=torch.bool)
        for other in range(len(weight)):
            v, b = weight[other] - weight[labels], bias[other] - bias[labels]
            corner = (x + middle[:, None] * v.sign()).clamp(0, 1)
            fooled |= ((corner * v).sum(1) + b > 0) & (other != labels)
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return high


@every_attack
def test_it_comes_near_the_exact_distance_of_a_linear_model(name: str, norm: str) -> None:
    model, clean, labels = linear()
    attack = build(name, norm)
    inside = (name, norm) == STAYS_INSIDE
    told = pytest.warns(WeakAttackWarning, match="came back clean") if inside else contextlib.nullcontext()
    with told:
        result = attack(model, clean, labels, batch_size=64)
    assert result.fooled.all() or (inside and result.fooled.float().mean() > 0.7)
    assert attack.change_norm == norm.lower()
    ratio = (attack.changes(clean, result.images) / exact(model, clean, labels, norm))[result.fooled]
    assert ratio.min() > 1 - 1e-3
    assert ratio.median() < SLACK[name, norm]


@pytest.mark.filterwarnings("ignore:FMN. .*came back clean:dcn_plugin.errors.WeakAttackWarning")
@every_attack
def test_the_result_is_that_of_adv_lib_called_directly_on_the_images_that_are_right(name: str, norm: str) -> None:
    from adv_lib.attacks import alma, ddn, fmn, pdgd, pdpgd
    from adv_lib.attacks.auto_pgd import minimal_apgd

    model, clean, labels = linear(12)
    labels[3] = (labels[3] + 1) % 3
    radius = 0.5 if norm == "Linf" else 2.0
    size = 2.0 if norm == "L2" else float("inf")
    direct: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "DDN": lambda x, y: ddn(model, x, y, steps=30, levels=None),
        "ALMA": lambda x, y: alma(model, x, y, num_steps=30),
        "PDGD": lambda x, y: (
            pdgd(model, x, y, num_steps=30) if norm == "L2" else pdpgd(model, x, y, size, num_steps=30)
        ),
        "FMN": lambda x, y: fmn(model, x, y, norm=size, steps=30),
        "APGD": lambda x, y: minimal_apgd(model, x, y, size, radius, n_iter=20, binary_search_steps=12),
    }
    attack = build(name, norm, 30, seed=3)
    result = attack(model, clean, labels, batch_size=64)
    rows = torch.arange(12) != 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(attack.batch_seed(0))
        expected = direct[name](clean[rows], labels[rows])
    assert torch.equal(result.images[rows], expected)
    assert torch.equal(result.images[3], clean[3])


@pytest.mark.filterwarnings("ignore:FMN. .*came back clean:dcn_plugin.errors.WeakAttackWarning")
@every_attack
def test_passes_are_exact_or_an_upper_bound_and_the_global_generator_is_left_alone(name: str, norm: str) -> None:
    model, clean, labels = linear(8)
    counting, before = Counting(model), torch.get_rng_state()
    result = build(name, norm, 20)(counting, clean, labels, batch_size=64)
    assert torch.equal(torch.get_rng_state(), before)
    if name == "APGD":
        assert int(result.queries.sum()) >= counting.rows
    else:
        assert int(result.queries.sum()) == counting.rows == 8 * 22
        assert result.backward_passes.tolist() == [20] * 8


@every_attack
def test_an_image_for_which_nothing_is_found_comes_back_clean_and_is_told(name: str, norm: str) -> None:
    class Certain(nn.Module):
        """Always of one opinion, with a gradient."""

        def forward(self, x: Tensor) -> Tensor:
            low = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([5 + 0 * low, low, -low], dim=1)

    clean = images(4)
    with pytest.warns(WeakAttackWarning, match="4 of 4 images .* came back clean"):
        result = build(name, norm, 10)(Certain(), clean, torch.zeros(4, dtype=torch.int64), batch_size=64)
    assert torch.equal(result.images, clean)
    assert not result.fooled.any()


@pytest.mark.filterwarnings("ignore:FMN. .*came back clean:dcn_plugin.errors.WeakAttackWarning")
@every_attack
def test_a_loss_that_is_flat_once_an_image_is_adversarial_is_no_sign_of_a_masked_gradient(name: str, norm: str) -> None:
    model, clean, labels = linear()
    assert not build(name, norm)(model, clean, labels, batch_size=64).zero_gradient.any()

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model((x * 8).round() / 8) + 0 * x.sum()

    if name != "APGD":  # its first point is a random one of a large ball
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = build(name, norm, 5)(Masked(), clean, right(Masked(), clean), batch_size=64)
        assert result.zero_gradient.all()


def test_the_best_of_all_is_nowhere_farther_than_each_and_costs_what_all_cost() -> None:
    model, clean, labels = linear(16)
    members = minimum_norm_attacks("L2", steps=40, batch=16)
    best = nearest_of_all("L2", steps=40, batch=16)(model, clean, labels, batch_size=16)
    with pytest.warns(WeakAttackWarning, match="FMN"):  # the best of all says nothing of it: others found an image
        alone: dict[str, AttackResult] = {
            name: attack(model, clean, labels, batch_size=16) for name, attack in members.items()
        }
    assert set(alone) == {"DDN", "ALMA", "PDGD", "FMN", "APGD"}
    distances = torch.stack([result.distance.nan_to_num(torch.inf) for result in alone.values()])
    assert torch.equal(best.distance, distances.amin(0))
    assert len(set(distances.argmin(0).tolist())) > 1
    # Beside the members' passes: the checks of the clean image and of the result.
    assert torch.equal(best.queries, torch.stack([r.queries for r in alone.values()]).sum(0) + 2)
    assert torch.equal(best.backward_passes, torch.stack([r.backward_passes for r in alone.values()]).sum(0))
    assert set(minimum_norm_attacks("Linf")) == {"PDGD", "FMN", "APGD"}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: MinimumNorm("DDM"), "DDN"),
        (lambda: MinimumNorm("DDN", norm="Linf"), "does not minimise this norm"),
        (lambda: MinimumNorm("DDN", step=3), "'step'"),
        (lambda: MinimumNorm("PDGD", steps=1), "an int >= 2"),
        (lambda: MinimumNorm("APGD", batch=0), "batch"),
        (lambda: minimum_norm_attacks("L1"), "L1"),  # type: ignore[arg-type]
        (lambda: minimum_norm_attacks(steps=1), "steps"),
    ],
)
def test_what_does_not_exist_or_is_out_of_range_is_refused_by_name(make: Callable[[], object], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        make()


def test_images_and_models_that_do_not_fit_are_refused_before_the_attack_asks() -> None:
    model, clean, labels = linear(4)
    with pytest.raises(ImageRangeError, match="float32"):
        MinimumNorm("DDN")(model.double(), clean.double(), labels)
    two = Counting(linear_model(16, 2))
    for attack in (MinimumNorm("ALMA"), MinimumNorm("APGD")):
        two.rows = 0
        with pytest.raises(ModelOutputError, match="3 or more"):
            attack(two, clean, right(two.model, clean), batch_size=64)
        assert two.rows == 4  # the check of the clean images
    assert MinimumNorm("DDN", steps=5)(two, clean, right(two.model, clean)).queries.max() == 7


def test_settings_name_everything_that_decides_on_the_images() -> None:
    settings = MinimumNorm("FMN", norm="Linf", steps=7).settings
    assert {"attack": "FMN", "norm": "Linf", "steps": 7, "step_size": 1.0, "gamma": 0.05}.items() <= settings.items()
    assert str(settings["library"]).startswith("adv-lib 0.")
    best = BestOf([MinimumNorm("DDN", steps=5), CW(steps=5)])
    assert "steps=5" in str(best.settings["attacks"]) and best.unkeyed == ()
    with pytest.raises(SpecError, match="without a bound"):
        BestOf([PGD(0.1)])
