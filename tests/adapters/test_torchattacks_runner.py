from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchattacks
from torch import Tensor, nn

from dcn_plugin.adapters._torchattacks_table import KNOWN
from dcn_plugin.adapters.torchattacks import TorchAttack
from dcn_plugin.attacks import Attack, AttackResult, EnsembleSource
from dcn_plugin.errors import ImageRangeError, LabelError, ModelOutputError, SpecError
from tests.adapters.toy_rgb import RgbNet, examples
from tests.attack_oracles import Counting
from tests.support.test_randomness import states
from tests.toys import DoNothing, images

# APGD sums losses that still carry their graph; torch says so once a process.
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")


@dataclass(frozen=True)
class Case:
    """One attack and a setting in which it must fool five of eleven images."""

    name: str
    options: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.name}-{self.options.get('norm', KNOWN[self.name].norm)}"

    def build(self, **more: Any) -> TorchAttack:
        return TorchAttack(self.name, **(self.options | more))


LINF, L2 = {"eps": 0.15}, {"eps": 3.0}
FEWER = {"Square": {"n_queries": 150}, "AutoAttack": {"steps": 10}}
STEPS = {"alpha": 0.03, "steps": 8}

SIGNED = "BIM RFGSM PGD EOTPGD UPGD Jitter PGDRS MIFGSM NIFGSM SINIFGSM VMIFGSM VNIFGSM DIFGSM"

CASES = [
    Case("FGSM", LINF),
    Case("FFGSM", LINF | {"alpha": 0.15}),
    Case("TPGD", LINF | STEPS),
    Case("TIFGSM", LINF | STEPS | {"len_kernel": 3, "nsig": 1}),
    *(Case(name, LINF | STEPS) for name in SIGNED.split()),
    *(Case(name, L2 | {"alpha": 0.6}) for name in ("PGDL2", "PGDRSL2")),
    *(
        Case(name, {"norm": norm} | ball | FEWER.get(name, {}))
        for name in ("APGD", "APGDT", "FAB", "Square", "AutoAttack")
        for norm, ball in (("Linf", LINF), ("L2", L2))
    ),
]
FEW = ("MIFGSM-Linf", "DIFGSM-Linf", "AutoAttack-Linf", "Square-L2")

every_attack = pytest.mark.parametrize("case", CASES, ids=str)
some_attacks = pytest.mark.parametrize("case", [case for case in CASES if str(case) in FEW], ids=str)


class Idle(DoNothing, TorchAttack):
    """One of torchattacks' attacks that returns the images as they are."""


def assert_it_works(attack: TorchAttack) -> AttackResult:
    """What every attack must achieve on a network that is right about all images but the first."""
    clean, labels = examples()
    kept = clean.clone(), labels.clone()
    result = attack(RgbNet(), clean, labels)
    delta = (result.images - clean).flatten(1)
    size = delta.abs().amax(dim=1) if attack.norm == "Linf" else delta.double().norm(dim=1)
    assert float(size.max()) <= attack.eps * (1 + 1e-6) + 1e-6
    assert float(result.images.min()) >= 0
    assert float(result.images.max()) <= 1
    assert torch.equal(clean, kept[0])
    assert torch.equal(labels, kept[1])
    with torch.no_grad():
        now = RgbNet().eval()(result.images).argmax(dim=1)
    assert torch.equal(result.fooled, (now != labels) & result.correct)
    assert result.correct.tolist() == [False] + [True] * 11
    assert int(result.fooled.sum()) > 4
    return result


def test_every_attack_of_the_table_has_a_case() -> None:
    assert {case.name for case in CASES} == set(KNOWN)


@every_attack
def test_an_attack_stays_in_its_ball_and_fools_the_network(case: Case) -> None:
    assert_it_works(case.build())


@every_attack
def test_float64_stays_float64_or_is_refused(case: Case) -> None:
    clean, labels = examples(dtype=torch.float64)
    model = RgbNet(dtype=torch.float64)
    if KNOWN[case.name].float32_only:
        with pytest.raises(ImageRangeError, match=r"torch\.float32"):
            case.build()(model, clean, labels)
    else:
        result = case.build()(model, clean, labels)
        assert result.images.dtype == torch.float64
        assert int(result.fooled.sum()) > 0


@pytest.mark.filterwarnings("ignore:.*came back clean:dcn_plugin.errors.WeakAttackWarning")  # it does
@every_attack
def test_an_attack_that_does_nothing_fails_that_test(case: Case) -> None:
    with pytest.raises(AssertionError):
        assert_it_works(Idle(case.name, **case.options))


@every_attack
def test_the_result_is_that_of_torchattacks_called_directly(case: Case) -> None:
    clean, labels = examples()
    attack = case.build(seed=4, batch=8)
    found = attack(RgbNet(), clean, labels, batch_size=8).images
    model = RgbNet().eval()
    takes = inspect.signature(getattr(torchattacks, case.name)).parameters
    with torch.random.fork_rng(devices=[]):
        for first in (0, 8):
            seed = attack.batch_seed(first)
            own = {"seed": seed, "n_classes": 6}
            given = {key: value for key, value in case.options.items() if key in takes}  # AutoAttack has 10 steps there
            torch.manual_seed(seed)
            theirs = getattr(torchattacks, case.name)(
                model, **given, **{key: value for key, value in own.items() if key in takes}
            )
            expected = theirs(clean[first : first + 8], labels[first : first + 8])
            # They work on the same images; the matrix products of another batch size may round differently.
            torch.testing.assert_close(found[first : first + 8], expected, rtol=0, atol=1e-6)


@every_attack
def test_seeds_reproduce_and_the_global_generators_are_not_touched(case: Case) -> None:
    clean, labels = examples()
    before = states()
    one, same, other = (case.build(seed=seed)(RgbNet(), clean, labels).images for seed in (1, 1, 2))
    assert states() == before
    assert torch.equal(one, same)
    draws = case.build().batch is not None
    # FAB draws only from its second restart on.
    assert torch.equal(one, other) == (not draws or case.name == "FAB")


@every_attack
def test_an_attack_whose_batch_is_none_draws_nothing(case: Case) -> None:
    attack = case.build()
    if attack.batch is None:
        clean, labels = examples()
        seeds = torch.random.initial_seed()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drawn = torch.get_rng_state()
            getattr(torchattacks, case.name)(RgbNet().eval(), **case.options)(clean, labels)
            assert torch.equal(torch.get_rng_state(), drawn)
        assert torch.random.initial_seed() == seeds
    else:
        assert KNOWN[case.name].random


@some_attacks
@pytest.mark.parametrize("fail_at", [1, 2, 4, None])
def test_modes_flags_and_generators_come_back_also_after_an_exception(case: Case, fail_at: int | None) -> None:
    model = RgbNet(fail_at=fail_at).train()
    model.frozen.eval()
    clean, labels = examples()
    kept = [p.clone() for p in model.state_dict().values()]

    def state() -> tuple[Any, ...]:
        return (
            [module.training for module in model.modules()],
            [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()],
            states(),
        )

    before = state()
    if fail_at is None:
        case.build()(model, clean, labels)
    else:
        with pytest.raises(RuntimeError, match="injected"):
            case.build()(model, clean, labels)
    assert state() == before
    assert all(map(torch.equal, model.state_dict().values(), kept))


def test_the_model_is_in_eval_mode_whenever_it_is_asked() -> None:
    seen: list[bool] = []
    model = RgbNet().train()
    model.register_forward_hook(lambda module, _args, _out: seen.extend(m.training for m in module.modules()))
    TorchAttack("APGDT", eps=0.1)(model, *examples())
    assert seen
    assert not any(seen)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    class Bare(nn.Module):  # torchattacks prints a line for a model without parameters
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :6]

    clean, _ = examples()
    for name in ("MIFGSM", "AutoAttack"):
        TorchAttack(name, eps=0.5)(Bare(), clean, clean.flatten(1)[:, :6].argmax(dim=1))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["DIFGSM", "VMIFGSM", "Square"])
def test_the_result_depends_on_the_batch_of_the_attack_and_not_on_that_of_the_caller(name: str) -> None:
    clean, labels = examples()
    options = {"n_queries": 40} if name == "Square" else {"steps": 3}

    def attack(batch: int) -> TorchAttack:
        return TorchAttack(name, eps=0.15, batch=batch, seed=1, **options)

    model = RgbNet()
    whole, other = (attack(4)(model, clean, labels, batch_size=size).images for size in (256, 4))
    assert torch.equal(whole, other)
    pieces = [attack(4)(model, clean[i : i + 8], labels[i : i + 8], batch_size=8, first_index=i).images for i in (0, 8)]
    assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(attack(6)(model, clean, labels, batch_size=6).images, whole)


def test_pieces_that_do_not_fit_the_batch_of_a_random_attack_are_refused() -> None:
    clean, labels = examples()
    for numbers in ({"batch_size": 10}, {"first_index": 3}):
        with pytest.raises(SpecError, match="multiples of 4"):
            TorchAttack("DIFGSM", eps=0.1, batch=4)(RgbNet(), clean, labels, **numbers)
    with pytest.raises(SpecError, match="batch size"):
        TorchAttack("DIFGSM", eps=0.1, batch=4)(RgbNet(), clean, labels, batch_size=0)


def test_an_attack_that_draws_nothing_takes_any_batch_size() -> None:
    clean, labels = examples(dtype=torch.float64)
    attack = TorchAttack("MIFGSM", eps=0.1, steps=4)
    whole, *others = (attack(RgbNet(dtype=torch.float64), clean, labels, batch_size=n).images for n in (12, 5, 1))
    for other in others:
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["FGSM", "MIFGSM", "NIFGSM", "SINIFGSM", "PGD", "VMIFGSM", "PGDRS", "APGD", "PGDL2"])
def test_samples_without_a_gradient_are_counted_and_warned_about(name: str) -> None:
    clean, labels = examples()
    with torch.no_grad():
        gap = RgbNet().eval()(clean).topk(2).values.diff().abs().flatten()
    # In float32 the gradient of the cross-entropy is exactly 0 where the gap exceeds some 104 (exp underflows).
    # Smoothed and random attacks look elsewhere too: there everything is saturated.
    gain = 1e6 if name in ("PGDRS", "VMIFGSM", "SINIFGSM", "APGD", "PGD") else float(130 / gap[1:].median())
    with pytest.warns(UserWarning, match=r"looks like robustness and is not"):
        result = TorchAttack(name, eps=0.004)(RgbNet(gain=gain), clean, labels)
    stuck = result.zero_gradient[1:]
    if gain < 1e6:
        expected = gain * gap[1:] > 110
        assert stuck[expected].all()
        assert not stuck[gain * gap[1:] < 80].any()
        assert not stuck.all()
        # A sample that the network gets wrong has a gradient.
        assert not result.zero_gradient[0]
        moved = (result.images != clean).flatten(1).any(dim=1)
        assert moved[~result.zero_gradient].all()  # they do not stand still with the others
    else:
        assert stuck.float().mean() > 0.8


def test_a_saturated_network_looks_robust_to_mi_fgsm_and_the_warning_says_of_how_many_images() -> None:
    clean, labels = examples()
    with pytest.warns(UserWarning, match=r"MIFGSM: 11 of 12 images"):
        saturated = TorchAttack("MIFGSM", eps=0.15)(RgbNet(gain=1e6), clean, labels)
    assert int(saturated.fooled.sum()) == 0
    assert int(TorchAttack("MIFGSM", eps=0.15)(RgbNet(), clean, labels).fooled.sum()) > 5


@every_attack
def test_no_gradient_is_missed_and_nothing_is_warned_about_on_a_healthy_network(case: Case) -> None:
    clean, labels = examples()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*looks like robustness")
        assert not case.build()(RgbNet(), clean, labels).zero_gradient.any()


def test_queries_count_what_the_model_was_asked() -> None:
    clean, labels = examples()
    for name, options, each in (("FGSM", {}, 1), ("MIFGSM", {"steps": 3}, 3), ("SINIFGSM", {"steps": 3, "m": 2}, 6)):
        model = Counting(RgbNet())
        result = TorchAttack(name, eps=0.1, **options)(model, clean, labels)
        assert int(result.queries.sum()) == model.rows
        # One for the clean image and, of those that were right, one for the result.
        assert result.queries.tolist() == [each + 1] + [each + 2] * 11
        assert result.backward_passes.tolist() == [each] * 12
    model = Counting(RgbNet())
    result = TorchAttack("PGDRS", eps=0.1, steps=2, noise_batch_size=3)(model, clean, labels)
    assert int(result.queries.sum()) == model.rows


def test_where_samples_cannot_be_told_apart_queries_are_an_upper_bound() -> None:
    clean, labels = examples()
    model = Counting(RgbNet())
    result = TorchAttack("Square", eps=0.1, n_queries=60)(model, clean, labels)
    assert int(result.queries.sum()) >= model.rows
    assert result.queries[0] == 1  # wrong when clean: never asked about again
    assert int(result.queries.max()) <= 60 + 5
    assert not result.backward_passes.any()


@some_attacks
def test_images_outside_of_the_range_are_refused_and_not_clamped(case: Case) -> None:
    clean, labels = examples()
    clean[3, 0, 0, 0] = 1.01
    with pytest.raises(ImageRangeError, match="range"):
        case.build()(RgbNet(), clean, labels)


def test_other_bad_input_is_named() -> None:
    clean, labels = examples()
    with pytest.raises(LabelError):
        TorchAttack("DIFGSM", eps=0.1)(RgbNet(), clean, labels + 6)
    with pytest.raises(ImageRangeError, match="RGB"):
        TorchAttack("TIFGSM", eps=0.1)(nn.Sequential(nn.Flatten(), nn.Linear(64, 6)), clean[:, :1], labels)
    with pytest.raises(ImageRangeError, match="square"):
        TorchAttack("DIFGSM", eps=0.1)(nn.Sequential(nn.Flatten(), nn.Linear(96, 6)), clean[:, :, :4], labels)
    with pytest.raises(ImageRangeError, match=r"torch\.float64"):
        TorchAttack("FAB", eps=0.1)(RgbNet(dtype=torch.float64), clean.double(), labels)
    with pytest.raises(ModelOutputError, match="finite"):
        TorchAttack("FGSM", eps=0.1)(Counting(RgbNet(), nan_at=12), clean, labels)


@pytest.mark.parametrize(
    ("name", "options", "needed"),
    [
        ("APGDT", {}, 4),
        ("AutoAttack", {}, 4),
        ("AutoAttack", {"version": "rand"}, 3),
        ("APGD", {"loss": "dlr"}, 3),
        ("UPGD", {"loss": "dlr"}, 3),
    ],
)
def test_a_model_with_too_few_classes_for_a_loss_is_refused(name: str, options: dict[str, str], needed: int) -> None:
    clean, _ = examples(4)

    def net(classes: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))

    with pytest.raises(ModelOutputError, match=f"{needed} or more"):
        TorchAttack(name, eps=0.1, **options)(net(needed - 1), clean, torch.zeros(4, dtype=torch.int64))
    model = net(needed)
    with torch.no_grad():
        labels = model(clean).argmax(dim=1)
    assert int(TorchAttack(name, eps=0.5, **options)(model, clean, labels).fooled.sum()) > 0


def test_an_attack_that_leaves_its_l2_ball_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Far(torchattacks.PGDL2):  # type: ignore[misc]
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return (images + 0.1).clamp(0, 1)

    monkeypatch.setattr(torchattacks, "PGDL2", Far)
    clean, labels = examples()
    assert TorchAttack("PGDL2", eps=1.4)(RgbNet(), clean, labels)  # 0.1 * sqrt(192) = 1.386
    with pytest.raises(ImageRangeError, match="L2"):
        TorchAttack("PGDL2", eps=0.8)(RgbNet(), clean, labels)


def test_an_ensemble_is_a_source_like_any_other_for_torchattacks_too() -> None:
    models = [RgbNet(), RgbNet(gain=0.5)]
    source = EnsembleSource(models).eval()
    clean, labels = examples()
    assert int(TorchAttack("MIFGSM", eps=0.15, alpha=0.03)(source, clean, labels).fooled.sum()) > 5
    direct = torchattacks.MIFGSM(source, eps=0.15, alpha=0.03)(clean, labels)
    with torch.no_grad():
        fooled = [(model.eval()(direct).argmax(dim=1) != labels)[1:] for model in models]
    assert all(int(who.sum()) > 5 for who in fooled)


def test_settings_say_every_option_that_torchattacks_resolved() -> None:
    attack = TorchAttack("DIFGSM", eps=16 / 255, steps=10, seed=3)
    assert attack.settings == {
        "alpha": 4 / 255,
        "attack": "DIFGSM",
        "batch": 64,
        "decay": 0.0,
        "diversity_prob": 0.5,
        "eps": 16 / 255,
        "library": f"torchattacks {torchattacks.__version__}",
        "norm": "Linf",
        "random_start": False,
        "resize_rate": 0.9,
        "seed": 3,
        "steps": 10,
    }
    assert (attack.name, attack.eps, attack.unkeyed) == ("DIFGSM", 16 / 255, ())
    assert isinstance(attack, Attack)
    assert TorchAttack("Square", norm="L2", eps=0.5).settings["norm"] == "L2"
    assert TorchAttack("PGD", random_start=False).settings["batch"] is None


@every_attack
def test_settings_rebuild_the_attack(case: Case) -> None:
    attack = case.build(seed=5)
    settings = dict(attack.settings)
    name = settings.pop("attack")
    assert settings.pop("library")
    if KNOWN[case.name].norm is not None:
        settings.pop("norm")
    if settings["batch"] is None:
        settings.pop("batch")
    assert TorchAttack(str(name), **settings).settings == attack.settings


def test_more_classes_than_asked_for_are_not_targeted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = torchattacks.APGDT

    def spy(*args: Any, n_classes: int, **options: Any) -> Any:
        seen.append(n_classes)
        return original(*args, n_classes=n_classes, **options)

    options = inspect.signature(original.__init__)
    clean, labels = examples()
    for limit in (10, 5):
        attack = TorchAttack("APGDT", eps=0.15, n_classes=limit)
        with monkeypatch.context() as patch:
            patch.setattr(torchattacks, "APGDT", spy)
            attack(RgbNet(), clean, labels)
    assert options.parameters["n_classes"].default == 10
    assert seen == [6, 5]


def test_images_of_noise_are_left_alone_when_no_image_is_right() -> None:
    clean = images(4, shape=(3, 8, 8))
    with torch.no_grad():
        wrong = (RgbNet().eval()(clean).argmax(dim=1) + 1) % 6
    result = TorchAttack("AutoAttack", eps=0.1)(RgbNet(), clean, wrong)
    assert torch.equal(result.images, clean)
    assert result.status == ["misclassified"] * 4
