from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import PGD, EnsembleSource, HopSkipJump
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import ModelOutputError, SpecError
from dcn_plugin.evaluate import Result, RunDirectory, sanity
from dcn_plugin.evaluate.protocols.sanity_attacks import RandomCorners
from tests.evaluate.watched import WatchedImages, count_calls, says
from tests.toys import images

EPS, STEPS, QUERIES = 0.02, 20, 300
CHECKS = ["black-box", "one-step", "radius", "noise", "zero-gradient", "unbounded"]


def small_net(seed: int = 0) -> nn.Sequential:
    """Two layers with smooth gradients; it says each of its four classes."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))
    generator = torch.Generator().manual_seed(seed)
    first, _, last = net[1:]
    with torch.no_grad():
        first.weight.copy_(0.3 * torch.randn(first.weight.shape, generator=generator))
        first.bias.copy_(-first.weight.sum(1) / 2)
        last.weight.copy_(0.5 * torch.randn(last.weight.shape, generator=generator))
        last.bias.zero_()
    return net


NET = small_net()


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """Images of 8 bits, labelled as the net says."""
    grey = (images(60, shape=(1, 8, 8)).clamp(0.3, 0.7) * 255).round() / 255
    return ImageSet(grey, torch.tensor([says(NET, image) for image in grey]), 4, "toy")


class Around(nn.Module):
    """Something around the small net, which an attacker of its gradient meets first."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()


class Saturated(Around):
    """Logits so large that the softmax rounds to 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.net(x)


class Quantised(Around):
    """Images of eight grey levels: rounding has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net((7 * x).round() / 7)


class Shattered(Around):
    """A ripple too small to see whose slope drowns that of the net."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 1e-3 * torch.sin(1e5 * x))


class Reversed(Around):
    """The same logits; the gradient comes back through another branch with its sign turned."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(2 * x.detach() - x)


class HonestWhenClean(Around):
    """An honest gradient at images of 8 bits, and a turned one everywhere else."""

    def forward(self, x: Tensor) -> Tensor:
        clean = ((255 * x - (255 * x).round()).abs() < 1e-4).flatten(1).all(1).view(-1, 1, 1, 1)
        return self.net(torch.where(clean, x, 2 * x.detach() - x))


class Shifted(Around):
    """Wrong on every image by one class."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).roll(1, 1)


def verdicts(
    model: nn.Module, data: ImageSet, *, queries: int = 0, sources: dict[str, nn.Module] | None = None
) -> dict[str | None, bool | None]:
    found = list(sanity(model, data, eps=EPS, steps=STEPS, queries=queries, sources=sources))
    assert [result.attack for result in found] == CHECKS
    return {result.attack: result.passed for result in found}


def test_an_honest_net_passes_every_check(data: ImageSet) -> None:
    assert set(verdicts(NET, data, queries=QUERIES, sources={"other": small_net(1)}).values()) == {True}


@pytest.mark.parametrize(
    ("masked", "failed"),
    [
        (Saturated, {"black-box", "radius", "noise", "zero-gradient", "unbounded"}),
        (Quantised, {"black-box", "radius", "noise", "zero-gradient", "unbounded"}),
        (Shattered, {"black-box", "noise", "unbounded"}),
        (Reversed, {"black-box", "radius", "noise", "unbounded"}),
        (HonestWhenClean, {"black-box", "one-step", "radius", "noise", "unbounded"}),
    ],
)
def test_a_net_that_hides_its_gradient_fails_the_checks_that_show_it(
    data: ImageSet, masked: type[Around], failed: set[str]
) -> None:
    found = verdicts(masked(), data, sources={"honest": NET})
    assert {check for check, passed in found.items() if passed is False} == failed


class FlatAt(Around):
    """No gradient at all at one image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, x: Tensor) -> Tensor:
        flat = (x == self.image).flatten(1).all(1).view(-1, 1, 1, 1)
        return self.net(torch.where(flat, x.detach(), x))


@pytest.mark.parametrize(("count", "passed"), [(90, False), (100, True)])
def test_one_image_in_a_hundred_may_have_no_gradient(count: int, passed: bool) -> None:
    grey = (images(count, shape=(1, 8, 8)).clamp(0.3, 0.7) * 255).round() / 255
    labelled = ImageSet(grey, torch.tensor([says(NET, image) for image in grey]), 4, "toy")
    results = {result.attack: result for result in sanity(FlatAt(grey[0]), labelled, eps=EPS, steps=2, queries=0)}
    assert results["zero-gradient"].figures == {"n_zero_gradient": 1, "zero_gradient_share": 1 / count}
    assert results["zero-gradient"].passed is passed


@pytest.mark.filterwarnings("error")
def test_a_net_that_is_wrong_on_every_image_is_not_judged(data: ImageSet) -> None:
    found = list(sanity(Shifted(), data, eps=EPS, steps=STEPS, queries=QUERIES))
    assert {result.passed for result in found} == {None}
    assert {(result.n_total, result.n_clean_correct, result.n_counted) for result in found} == {(60, 0, 0)}


def test_a_net_that_is_wrong_on_some_images_is_judged_by_the_others(data: ImageSet) -> None:
    labels = torch.where(torch.arange(60) < 20, (data.labels + 1) % 4, data.labels)
    found = list(sanity(NET, ImageSet(data.images, labels, 4, "toy"), eps=EPS, steps=STEPS, queries=QUERIES))
    assert {result.passed for result in found} == {True}
    assert {result.n_counted for result in found} == {40}


def test_four_images_are_too_few_for_a_comparison(data: ImageSet) -> None:
    few = data.subset(torch.arange(4))
    found = {r.attack: r.passed for r in sanity(Reversed(), few, eps=EPS, steps=STEPS, queries=QUERIES)}
    assert [check for check in CHECKS if found[check] is None] == ["black-box", "one-step", "radius", "noise"]


def test_figures_agree_with_a_slow_loop_over_single_images(data: ImageSet) -> None:
    data, count = data.subset(torch.arange(20)), 20
    found = {r.attack: r for r in sanity(NET, data, eps=EPS, steps=STEPS, queries=QUERIES, batch_size=13)}
    ladder = {
        factor: PGD(EPS * factor, steps=STEPS, step_size=2.5 * EPS * factor / STEPS) for factor in (0.25, 0.5, 1, 2)
    }
    won = {name: [False] * count for name in (*ladder, "fgsm", "noise", "decisions")}
    decide = HopSkipJump(max_queries=QUERIES, norm="linf")
    rises = 0
    for place, label in enumerate(data.labels):
        image = data.images[place : place + 1]
        margins = {}
        for factor, attack in ladder.items():
            made = attack(NET, image, label[None], first_index=place).images
            won[factor][place] = says(NET, made[0]) != label
            with torch.no_grad():
                logits = NET(made)[0]
            margins[factor] = max(logits[c] for c in range(4) if c != label) - logits[label]
        rises += bool(margins[2] > margins[0.25])
        one = PGD(EPS, steps=1)(NET, image, label[None]).images
        won["fgsm"][place] = says(NET, one[0]) != label
        noisy = RandomCorners(EPS, draws=STEPS)(NET, image, label[None], first_index=place).images
        won["noise"][place] = says(NET, noisy[0]) != label
        close = decide(NET, image, label[None], first_index=place).images
        won["decisions"][place] = says(NET, close[0]) != label and bool((close - image).abs().max() <= EPS + 1e-6)
    total = {name: sum(flags) for name, flags in won.items()}
    assert [found["radius"].figures[f"n_{rung}"] for rung in ("quarter", "half", "eps", "double")] == [
        total[factor] for factor in ladder
    ]
    assert (found["radius"].figures["n_loss_rises"], found["radius"].figures["n_loss_does_not_rise"]) == (
        rises,
        count - rises,
    )
    assert (found["one-step"].figures["n_many_steps"], found["one-step"].figures["n_one_step"]) == (
        total[1],
        total["fgsm"],
    )
    assert (found["noise"].figures["n_attack"], found["noise"].figures["n_noise"]) == (total[1], total["noise"])
    assert found["noise"].figures["n_only_attack"] == sum(
        a and not b for a, b in zip(won[1], won["noise"], strict=True)
    )
    assert found["black-box"].figures["n_black_box"] == total["decisions"]
    assert 0 < total["noise"] < total[1] > total["decisions"] > 0
    assert found["zero-gradient"].figures == {"n_zero_gradient": 0, "zero_gradient_share": 0}
    assert found["unbounded"].figures == {"n_fooled": count, "fooled_share": 1}


def test_records_say_what_was_asked(data: ImageSet) -> None:
    found = list(sanity(NET, data, eps=EPS, steps=STEPS, queries=0, seed=4, name="net"))
    assert {(r.protocol, r.target, r.seed, r.data_hash) for r in found} == {("sanity", "net", 4, data.content_hash)}
    assert [(r.eps, r.steps) for r in found] == [(EPS, STEPS)] * 4 + [(EPS, 1), (1, STEPS)]
    assert [Result.from_dict(r.to_dict()) for r in found] == found


def test_decisions_alone_show_what_the_gradient_hides(data: ImageSet) -> None:
    assert verdicts(Reversed(), data, queries=QUERIES)["black-box"] is False
    assert verdicts(Reversed(), data, queries=0)["black-box"] is None


def test_transfer_from_a_source_shows_what_the_gradient_hides(data: ImageSet) -> None:
    (found,) = [
        r
        for r in sanity(Reversed(), data, eps=EPS, steps=STEPS, queries=0, sources={"honest": small_net()})
        if r.attack == "black-box"
    ]
    attack = PGD(EPS, steps=STEPS, step_size=2.5 * EPS / STEPS)
    made = attack(NET, data.images, data.labels).images
    expected = sum(says(NET, image) != label for image, label in zip(made, data.labels.tolist(), strict=True))
    assert found.passed is False
    assert (found.figures["n_white_box"], found.figures["n_black_box"]) == (0, expected)
    assert found.attack_settings["sources"] == "honest"


def test_a_source_that_is_the_model_itself_is_left_out_with_a_warning(data: ImageSet) -> None:
    sources = {"copy": small_net(), "wrapped": nn.DataParallel(NET), "other": small_net(1)}
    with pytest.warns(UserWarning, match="source copy, wrapped is the model itself"):
        first = next(sanity(NET, data, eps=EPS, steps=STEPS, queries=0, sources=sources))
    assert first.attack_settings["sources"] == "other"
    assert first == next(sanity(NET, data, eps=EPS, steps=STEPS, queries=0, sources={"other": small_net(1)}))


@pytest.mark.parametrize(
    "wrap", [nn.Sequential, lambda net: copy.deepcopy(net).double(), lambda net: EnsembleSource([net])]
)
def test_the_models_own_weights_in_another_form_pass_nothing(data: ImageSet, wrap: Callable[..., nn.Module]) -> None:
    first = next(sanity(NET, data, eps=EPS, steps=STEPS, queries=0, sources={"same": wrap(NET)}))
    assert (first.attack, first.passed) == ("black-box", None)
    both = {"same": wrap(NET), "other": small_net(1)}
    assert next(sanity(NET, data, eps=EPS, steps=STEPS, queries=0, sources=both)).passed is True


def test_without_a_black_box_attack_that_check_is_not_judged(data: ImageSet) -> None:
    black, *rest = sanity(NET, data, eps=EPS, steps=STEPS, queries=0)
    assert (black.attack, black.passed) == ("black-box", None)
    assert {result.passed for result in rest} == {True}


def test_a_finished_check_is_not_run_again_and_a_new_source_repeats_only_its_own(
    data: ImageSet, tmp_path: Path
) -> None:
    net = small_net()
    calls = count_calls(net)

    def ask(sources: dict[str, nn.Module]) -> list[Result]:
        calls.clear()
        store = RunDirectory(tmp_path)
        return list(sanity(net, data, eps=EPS, steps=STEPS, queries=0, sources=sources, store=store))

    first = ask({})
    assert calls
    assert ask({}) == first
    assert not calls
    second = ask({"other": small_net(1)})
    assert second[1:] == first[1:]
    assert second[0] != first[0]
    assert calls


def test_images_are_read_a_batch_at_a_time_whose_size_changes_nothing(data: ImageSet) -> None:
    data = data.subset(torch.arange(20))
    watched = WatchedImages(data)
    small = list(sanity(NET, watched, eps=EPS, steps=STEPS, queries=QUERIES, batch_size=7))
    assert watched.largest == 7
    whole = list(sanity(NET, data, eps=EPS, steps=STEPS, queries=QUERIES, batch_size=20))
    assert [(r.passed, r.figures) for r in small] == [(r.passed, r.figures) for r in whole]


def test_every_attack_runs_once(data: ImageSet) -> None:
    net = small_net()
    gradients: list[int] = []
    net.register_forward_pre_hook(lambda _, args: gradients.append(len(args[0])) if args[0].requires_grad else None)
    list(sanity(net, data, eps=EPS, steps=STEPS, queries=0))
    # Four radii, the unbounded one, and one single step.
    assert gradients == [60] * (5 * STEPS + 1)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"steps": 1}, "steps"), ({"queries": -1}, "queries"), ({"eps": 0.0}, "eps"), ({"eps": 2.0}, "eps")],
)
def test_settings_out_of_range_are_refused(data: ImageSet, arguments: dict[str, float], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        next(sanity(NET, data, **{"eps": EPS, "queries": 0} | arguments))  # type: ignore[arg-type]


def test_logits_that_are_no_numbers_are_refused(data: ImageSet) -> None:
    broken = small_net()
    with torch.no_grad():
        broken[3].bias.fill_(torch.nan)
    with pytest.raises(ModelOutputError, match="finite"):
        next(sanity(broken, data, eps=EPS))
