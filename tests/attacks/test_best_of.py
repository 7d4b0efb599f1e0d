from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import CW, PGD, Attack, AttackRun, BestOf, BoundaryAttack, HopSkipJump
from dcn_plugin.errors import ImageRangeError, SpecError, WeakAttackWarning
from dcn_plugin.evaluate import whitebox
from tests.attack_oracles import Counting, grey, right
from tests.toys import DoNothing, image_set, linear_model


class Towards(Attack):
    """Goes from each image towards a grey one, in so many steps, and keeps the first that fools the model."""

    def __init__(self, level: float, *, steps: int = 50) -> None:
        super().__init__(eps=None)
        self.level, self.steps = level, steps

    def perturb(self, run: AttackRun) -> Tensor:
        found, standing = run.images.clone(), run.correct.clone()
        for step in range(1, self.steps + 1):
            tried = torch.lerp(run.images, torch.full_like(run.images, self.level), step / self.steps)
            fooled = standing & (run.classes(tried) != run.labels)
            found[fooled] = tried[fooled]
            standing &= ~fooled
        return found


def linear() -> tuple[nn.Module, Tensor, Tensor]:
    model, clean = linear_model(16, dtype=torch.float64), grey(30)
    return model, clean, right(model, clean)


def test_each_image_gets_the_nearest_success_of_any_attack() -> None:
    model, clean, labels = linear()
    with torch.no_grad():
        list(model.modules())[-1].bias.copy_(torch.tensor([0.5, 0.0, -0.5]))  # type: ignore[union-attr, operator]
    labels = right(model, clean)
    members = [Towards(0.0), Towards(1.0)]
    counting = Counting(model)
    with pytest.warns(WeakAttackWarning, match="none of 2 attacks found"):
        best = BestOf(members)(counting, clean, labels)
    alone = [attack(model, clean, labels) for attack in members]
    distances = torch.stack([result.distance.nan_to_num(torch.inf) for result in alone])
    nearest = distances.argmin(0)
    expected = torch.where(nearest.view(-1, 1, 1, 1) == 0, alone[0].images, alone[1].images)
    found = distances.amin(0).isfinite()
    assert 0 < int(found.sum()) < len(clean)
    assert torch.equal(best.fooled, found)
    assert torch.equal(best.images[found], expected[found])
    assert torch.equal(best.images[~found], clean[~found])
    assert int(best.queries.sum()) == counting.rows


def test_it_is_no_farther_than_its_members_and_counts_what_all_of_them_ask() -> None:
    model, clean, labels = linear()
    members = [CW(steps=200, bisections=2), HopSkipJump(max_queries=150, norm="l2"), BoundaryAttack(max_queries=150)]
    best = BestOf(members, norm="L2")(model, clean, labels, batch_size=7, first_index=14)
    alone = [attack(model, clean, labels, first_index=14) for attack in members]
    torch.testing.assert_close(
        best.distance, torch.stack([result.distance.nan_to_num(torch.inf) for result in alone]).amin(0)
    )
    assert torch.equal(best.backward_passes, alone[0].backward_passes)
    assert torch.equal(best.queries, torch.stack([result.queries for result in alone]).sum(0) + 2)


def test_in_linf_the_largest_change_of_a_pixel_is_compared() -> None:
    model, clean, labels = linear()
    members = [HopSkipJump(max_queries=budget, norm="linf", seed=budget) for budget in (100, 150)]
    best = BestOf(members, norm="Linf")(model, clean, labels)
    alone = torch.stack([members[0].changes(clean, attack(model, clean, labels).images) for attack in members])
    assert torch.equal(members[0].changes(clean, best.images), alone.amin(0))


def test_an_attack_that_does_nothing_adds_nothing() -> None:
    model, clean, labels = linear()
    alone = CW(steps=200, bisections=1)(model, clean, labels)
    both = BestOf([DoNothing(eps=None), CW(steps=200, bisections=1)])(model, clean, labels)
    assert torch.equal(both.images, alone.images)


def test_its_settings_name_every_member_with_its_settings() -> None:
    attack = BestOf([CW(steps=5), HopSkipJump(max_queries=100)])
    assert "CW(" in str(attack.settings["attacks"]) and "max_queries=100" in str(attack.settings["attacks"])
    assert attack.settings != BestOf([CW(steps=6), HopSkipJump(max_queries=100)]).settings
    assert attack.unkeyed == ()

    class Odd(DoNothing):
        def __init__(self) -> None:
            super().__init__(eps=None)
            self.table = [1, 2]

    assert BestOf([Odd()]).unkeyed == ("Odd.table",)


@pytest.mark.parametrize(
    ("members", "norm", "match"),
    [
        ([], "L2", "nothing to take the best of"),
        ([PGD(0.1)], "L2", "without a bound"),
        ([CW], "L2", "without a bound"),
        ([CW()], "Linf", "another norm"),
        ([CW()], "L1", "'L2', 'Linf'"),
    ],
)
def test_what_cannot_be_compared_is_refused(members: list[Attack], norm: str, match: str) -> None:
    with pytest.raises(SpecError, match=match):
        BestOf(members, norm=norm)  # type: ignore[arg-type]


def test_images_that_a_member_does_not_take_are_refused_before_any_member_runs() -> None:
    class Small(Towards):
        def check_data(self, shape: tuple[int, int, int], num_classes: int) -> None:
            if shape[1] > 2:
                raise ImageRangeError("Too large.", shape, "2 pixels a side")

    data = image_set(4)
    with pytest.raises(ImageRangeError, match="Too large"):
        whitebox({"net": linear_model(16)}, [BestOf([Towards(0.5), Small(0.5)])], data, training_seed=0)
