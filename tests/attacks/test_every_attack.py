"""One table of attacks, and what each of them must do."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import (
    CW,
    MIFGSM,
    PGD,
    TIFGSM,
    Attack,
    AttackResult,
    AttackRun,
    BoundaryAttack,
    DecisionAttack,
    HopSkipJump,
    LowPassPGD,
)
from dcn_plugin.attacks.base import Rows
from dcn_plugin.attacks.decision import Asker
from dcn_plugin.errors import ImageRangeError, LabelError, ModelOutputError, SpecError
from tests.attack_oracles import Counting, Labels, RowNet, right
from tests.toys import DoNothing, ModeNet, images

Make = Callable[[int], Attack]

ATTACKS: dict[str, Make] = {
    "fgsm": lambda seed: PGD(0.3, steps=1, seed=seed),
    "pgd": lambda seed: PGD(0.3, steps=8, random_start=True, seed=seed),
    "pgd, low-passed": lambda seed: LowPassPGD(0.5, cutoff=0.75, steps=8, random_start=True, seed=seed),
    "mi-fgsm": lambda seed: MIFGSM(0.3, steps=8),
    "mi-fgsm, low-passed": lambda seed: MIFGSM(0.5, steps=8, cutoff=0.75),
    "ti-fgsm": lambda seed: TIFGSM(0.4, steps=8, kernel=3),
    "cw": lambda seed: CW(steps=30, step_size=0.05, c_start=0.1, bisections=1),
    "boundary": lambda seed: BoundaryAttack(max_queries=200, seed=seed),
    "boundary, windows": lambda seed: BoundaryAttack(
        max_queries=200, adaptation="window", check_every=2, spherical_step=0.3, source_step=0.1, seed=seed
    ),
    "boundary, restarted": lambda seed: BoundaryAttack(max_queries=300, steps=40, restarts=1, seed=seed),
    "hopskipjump": lambda seed: HopSkipJump(max_queries=200, initial_probes=30, seed=seed),
    "hopskipjump, linf": lambda seed: HopSkipJump(max_queries=200, norm="linf", initial_probes=30, seed=seed),
}
RANDOM = [name for name in ATTACKS if name not in ("fgsm", "mi-fgsm", "mi-fgsm, low-passed", "ti-fgsm", "cw")]
DECISION = [name for name, make in ATTACKS.items() if make(0).decision_based]
GRADIENT = [name for name in ATTACKS if name not in DECISION]

every = pytest.mark.parametrize("name", ATTACKS)


class OnlyStart(DecisionAttack):
    """Finds an adversarial image and is content with it."""

    def approach(self, run: AttackRun, asker: Asker, rows: Rows, points: Tensor) -> Tensor:
        return points


def assert_attack_works(attack: Attack) -> None:
    """It fools, and where no ball bounds it, it comes much closer than noise does."""
    model, clean = RowNet(), images(64, dtype=torch.float64)
    truth = right(model, clean)
    result = attack(model, clean, truth)
    with torch.no_grad():
        wrong = model(result.images).argmax(1) != truth
    assert torch.equal(result.fooled, wrong)
    assert result.fooled.double().mean() > 0.85
    if attack.eps is None:
        assert result.median_distance < 0.015


@every
def test_it_fools_a_network(name: str) -> None:
    assert_attack_works(ATTACKS[name](0))


@pytest.mark.parametrize(
    "useless",
    [
        DoNothing(eps=0.3),
        DoNothing(eps=None),
        OnlyStart(
            max_queries=500,
            steps=None,
            scouts=1,
            restarts=0,
            start_draws=100,
            start_grid=1,
            start_search="linear",
            seed=0,
        ),
    ],
)
def test_an_attack_that_does_nothing_fails_that_test(useless: Attack) -> None:
    with pytest.raises(AssertionError):
        assert_attack_works(useless)


@every
def test_results_are_images_and_the_input_is_not_written_to(name: str) -> None:
    attack, model = ATTACKS[name](0), RowNet()
    clean, truth = images(20, dtype=torch.float64), torch.arange(20) % 3
    kept = clean.clone(), truth.clone()
    found = attack(model, clean, truth).images
    assert torch.equal(clean, kept[0])
    assert torch.equal(truth, kept[1])
    assert found.shape == clean.shape
    assert found.dtype == clean.dtype
    assert found.min() >= 0
    assert found.max() <= 1
    if attack.eps is not None:
        assert (found - clean).abs().max() <= attack.eps + 1e-9
    assert not found.requires_grad


def assert_equal_bits(one: AttackResult, other: AttackResult) -> None:
    for field in fields(AttackResult):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)), field.name


@every
def test_the_batch_size_does_not_change_a_bit_in_float64(name: str) -> None:
    attack, model = ATTACKS[name](5), RowNet()
    clean, truth = images(30, dtype=torch.float64), torch.arange(30) % 3  # two thirds are misclassified
    whole = attack(model, clean, truth, batch_size=64)
    for size in (1, 7):
        assert_equal_bits(attack(model, clean, truth, batch_size=size), whole)


@every
def test_the_batch_size_does_not_change_counts_in_float32(name: str) -> None:
    attack, model = ATTACKS[name](5), ModeNet()
    clean = images(100)
    truth = right(model, clean)
    counts = [int(attack(model, clean, truth, batch_size=size).fooled.sum()) for size in (24, 100)]
    assert max(counts) - min(counts) <= 1


@every
def test_a_data_set_attacked_piece_by_piece_gives_the_same_as_at_once(name: str) -> None:
    attack, model = ATTACKS[name](5), RowNet()
    clean, truth = images(12, dtype=torch.float64), torch.arange(12) % 3
    whole = attack(model, clean, truth)
    pieces = [attack(model, clean[i : i + 5], truth[i : i + 5], first_index=i) for i in (0, 5, 10)]
    assert torch.equal(torch.cat([piece.images for piece in pieces]), whole.images)
    assert torch.equal(torch.cat([piece.queries for piece in pieces]), whole.queries)
    with pytest.raises(SpecError, match="place of the first image"):
        attack(model, clean, truth, first_index=-1)


@pytest.mark.parametrize("name", RANDOM)
def test_the_seed_and_the_place_decide_on_what_is_drawn(name: str) -> None:
    model, clean = RowNet(), images(8, dtype=torch.float64)
    truth = right(model, clean)
    one, same, other = (ATTACKS[name](seed)(model, clean, truth).images for seed in (1, 1, 2))
    elsewhere = ATTACKS[name](1)(model, clean, truth, first_index=100).images
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, elsewhere)


def model_state(model: nn.Module) -> list[object]:
    return [
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [parameter.grad for parameter in model.parameters()],
        [tensor.tolist() for tensor in model.state_dict().values()],
    ]


def random_state() -> list[object]:
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002  # the one that other libraries draw from
    return [torch.get_rng_state().tolist(), random.getstate(), str(legacy)]


@every
@pytest.mark.parametrize("fail_at", [None, 0, 8, 30, 60])
def test_the_model_and_all_global_generators_come_back_as_they_were(name: str, fail_at: int | None) -> None:
    clean = images(8)
    truth = right(ModeNet(), clean)
    inner = ModeNet().train()
    inner.frozen.eval()  # a frozen batch norm must not be thawed
    model = Counting(inner, fail_at=fail_at)
    model.training = True
    before = model_state(model), random_state()
    attack = ATTACKS[name](0)
    rows_needed = 24 if name == "fgsm" else 10_000
    if fail_at is None or fail_at >= rows_needed:
        attack(model, clean, truth)
    else:
        with pytest.raises(RuntimeError, match="injected"):
            attack(model, clean, truth)
    assert (model_state(model), random_state()) == before


@every
@pytest.mark.parametrize("batch_size", [5, 64])
def test_every_query_is_counted_and_no_forward_pass_is_larger_than_a_batch(name: str, batch_size: int) -> None:
    model = Counting(RowNet())
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _module, args: sizes.append(len(args[0])))
    result = ATTACKS[name](0)(model, images(16, dtype=torch.float64), torch.arange(16) % 3, batch_size=batch_size)
    assert int(result.queries.sum()) == model.rows
    assert max(sizes) <= batch_size
    assert (result.queries >= 1).all()


@every
def test_a_misclassified_image_costs_one_query_and_comes_back_clean_without_a_distance(name: str) -> None:
    attack, model, clean = ATTACKS[name](0), RowNet(), images(6, dtype=torch.float64)
    truth = (right(model, clean) + 1) % 3
    truth[0] -= 1
    truth %= 3
    result = attack(model, clean, truth)
    assert result.status[1:] == ["misclassified"] * 5
    assert result.status[0] == "fooled"
    assert result.distance[1:].isnan().all()
    assert result.distance[0] > 0
    assert result.counts == {"n_total": 6, "n_clean_correct": 1, "n_failed_starts": 0, "n_counted": 1}
    if attack.eps is None:
        assert torch.equal(result.images[1:], clean[1:])
        assert (result.queries[1:] == 1).all()


@every
def test_it_survives_a_batch_in_which_every_image_is_misclassified(name: str) -> None:
    model, clean = RowNet(), images(4, dtype=torch.float64)
    result = ATTACKS[name](0)(model, clean, (right(model, clean) + 1) % 3)
    assert result.status == ["misclassified"] * 4
    assert np.isnan(result.median_distance)


@every
@pytest.mark.parametrize("nan_at", [0, 8, 20])
def test_logits_that_are_not_finite_are_refused_whenever_they_come(name: str, nan_at: int) -> None:
    net, clean = RowNet(), images(8, dtype=torch.float64)
    with pytest.raises(ModelOutputError, match="not finite"):
        ATTACKS[name](0)(Counting(net, nan_at=nan_at), clean, right(net, clean))


@every
@pytest.mark.parametrize(
    "bad", [torch.full((2, 1, 4, 4), 255.0), torch.full((2, 1, 4, 4), -0.1), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)]
)
def test_images_that_are_none_are_refused(name: str, bad: Tensor) -> None:
    with pytest.raises(ImageRangeError):
        ATTACKS[name](0)(RowNet(dtype=torch.float32), bad, torch.zeros(2, dtype=torch.int64))


@every
@pytest.mark.parametrize("bad", [torch.tensor([0, 3]), torch.tensor([0, -1]), torch.tensor([0.0, 1.0])])
def test_labels_out_of_range_are_refused(name: str, bad: Tensor) -> None:
    with pytest.raises(LabelError):
        ATTACKS[name](0)(RowNet(dtype=torch.float32), images(2), bad)


@pytest.mark.parametrize("name", GRADIENT)
def test_a_gradient_attack_warns_about_probabilities_and_refuses_labels(name: str) -> None:
    net, clean = RowNet(), images(4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="probabilities"):
        ATTACKS[name](0)(nn.Sequential(net, nn.Softmax(dim=1)), clean, right(net, clean))
    with pytest.raises(ModelOutputError):
        ATTACKS[name](0)(Labels(net), clean, right(net, clean))


@pytest.mark.parametrize("name", DECISION)
def test_a_decision_based_attack_takes_labels_or_probabilities_and_does_the_same(name: str) -> None:
    net, clean = RowNet(), images(6, dtype=torch.float64)
    truth = right(net, clean)
    with_logits = ATTACKS[name](0)(net, clean, truth)
    assert_equal_bits(ATTACKS[name](0)(Labels(net), clean, truth), with_logits)
    assert_equal_bits(ATTACKS[name](0)(nn.Sequential(net, nn.Softmax(dim=1)), clean, truth), with_logits)


@every
def test_settings_are_scalars_and_nothing_is_left_out_of_a_key(name: str) -> None:
    attack = ATTACKS[name](3)
    assert attack.unkeyed == ()
    assert attack.settings.keys() == vars(attack).keys()
    assert repr(attack).startswith(f"{attack.name}(")


def test_a_setting_that_no_key_can_hold_is_named() -> None:
    attack = PGD(0.1)
    attack.mask = torch.ones(3)  # type: ignore[attr-defined]
    attack._cache = torch.ones(3)  # type: ignore[attr-defined]
    assert attack.unkeyed == ("mask",)
    assert "mask" not in attack.settings


@pytest.mark.parametrize("name", DECISION)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 2), (1, 1, 40)])
def test_images_of_any_size_work(name: str, shape: tuple[int, int, int]) -> None:
    net, clean = RowNet(shape), images(20, shape=shape, dtype=torch.float64)
    result = ATTACKS[name](0)(net, clean, right(net, clean))
    assert result.fooled.any()
    assert (result.fooled | ~result.started).all()
