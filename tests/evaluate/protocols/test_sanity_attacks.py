"""Attacks that ``sanity`` compares: each against a plain call of the attack, and run once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import ClassesError
from dcn_plugin.evaluate.protocols.sanity_attacks import Attempts, Outcome, RandomCorners
from tests.evaluate.protocols.test_sanity import EPS, NET, QUERIES, small_net
from tests.evaluate.watched import count_calls, says
from tests.toys import images, linear_model

STEPS = 4


@pytest.fixture(scope="module")
def data() -> ImageSet:
    """Images of 8 bits, labelled as the net says."""
    grey = (images(60, shape=(1, 8, 8)).clamp(0.3, 0.7) * 255).round() / 255
    return ImageSet(grey, torch.tensor([says(NET, image) for image in grey]), 4, "toy")


@pytest.fixture(scope="module")
def mixed(data: ImageSet) -> ImageSet:
    """The same images; every fifth is labelled other than the net says."""
    return ImageSet(data.images, torch.where(torch.arange(60) % 5 == 0, (data.labels + 1) % 4, data.labels), 4, "toy")


def attempts(model: nn.Module, data: ImageSet, **changes: Any) -> Attempts:
    settings: dict[str, Any] = {"eps": EPS, "steps": STEPS, "sources": {}, "queries": QUERIES, "attack_seed": 0}
    return Attempts(model, data, **{**settings, "batch_size": 16, **changes})


def assert_outcome(outcome: Outcome, model: nn.Module, data: ImageSet, adversarial: Tensor) -> None:
    """What a loop over single images says."""
    for place, (clean, image, label) in enumerate(zip(data.images, adversarial, data.labels, strict=True)):
        right = says(model, clean) == label
        with torch.no_grad():
            logits = model(image[None])[0].double()
        margin = max(logits[other] for other in range(4) if other != label) - logits[label]
        assert bool(outcome.right[place]) == right
        assert bool(outcome.fooled[place]) == (right and bool(margin > 0))
        torch.testing.assert_close(outcome.margin[place], margin, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("radius", [None, 2 * EPS])
def test_pgd_is_judged_on_the_model_in_the_ball_that_is_asked_for(mixed: ImageSet, radius: float | None) -> None:
    eps = EPS if radius is None else radius
    outcome = attempts(NET, mixed).pgd(radius)
    expected = PGD(eps, steps=STEPS, step_size=2.5 * eps / STEPS)(NET, mixed.images, mixed.labels)
    assert_outcome(outcome, NET, mixed, expected.images)
    assert torch.equal(outcome.zero_gradient, expected.zero_gradient)
    assert 0 < int(outcome.fooled.sum()) < int(outcome.right.sum()) < 60
    assert outcome.margin.dtype == torch.float64


def test_images_of_a_source_are_judged_by_the_model(mixed: ImageSet) -> None:
    source = small_net(1)
    outcome = attempts(NET, mixed, sources={"other": source}).pgd(0.1, source="other")
    expected = PGD(0.1, steps=STEPS, step_size=0.25 / STEPS)(source, mixed.images, mixed.labels)
    assert_outcome(outcome, NET, mixed, expected.images)
    assert outcome.fooled.any()
    assert not torch.equal(outcome.fooled, expected.fooled)  # the source falls for others


def test_one_step_is_fgsm_and_noise_has_a_corner_for_every_step(mixed: ImageSet) -> None:
    asked = attempts(NET, mixed, attack_seed=5)
    assert_outcome(asked.one_step(), NET, mixed, PGD(EPS, steps=1)(NET, mixed.images, mixed.labels).images)
    corners = RandomCorners(EPS, draws=STEPS, seed=5)(NET, mixed.images, mixed.labels)
    assert_outcome(asked.noise(), NET, mixed, corners.images)
    assert corners.fooled.any()


def test_nothing_runs_before_it_is_asked_for_and_nothing_runs_twice(mixed: ImageSet) -> None:
    model = small_net()
    calls = count_calls(model)
    asked = attempts(model, mixed)
    assert not calls
    first = asked.pgd()
    count = len(calls)
    assert asked.pgd() is asked.pgd(EPS) is first
    assert len(calls) == count > 0
    assert asked.pgd(2 * EPS) is not first
    assert len(calls) == 2 * count - 1  # one image shows once whether the model takes the mixed
    assert asked.n_right == int(first.right.sum()) == 48


def test_a_check_counts_the_passes_of_all_attacks_that_it_compares_whenever_they_ran(mixed: ImageSet) -> None:
    asked = attempts(NET, mixed)
    gradients, noise = asked.pgd(), asked.noise()
    (_, _), passes = asked.counted(lambda case: (case.pgd(), case.noise()))
    assert passes["n_forward_passes"] == int(gradients.queries.sum()) + int(noise.queries.sum())
    assert passes["n_backward_passes"] == int(gradients.backward_passes.sum()) == STEPS * len(mixed) > 0
    assert asked.counted(Attempts.noise)[1]["n_backward_passes"] == 0


def test_a_model_or_a_source_of_other_classes_is_refused_before_the_first_attack(mixed: ImageSet) -> None:
    with pytest.raises(ClassesError):
        attempts(linear_model(64, 5), mixed).noise()
    with pytest.raises(ClassesError, match="other"):
        attempts(NET, mixed, sources={"other": linear_model(64, 5)}).pgd()


def test_random_corners_lie_on_corners_of_the_ball_and_stop_at_success(data: ImageSet) -> None:
    result = RandomCorners(EPS, draws=8)(NET, data.images, data.labels)
    change = (result.images - data.images).abs()
    torch.testing.assert_close(change[result.fooled], torch.full_like(change[result.fooled], EPS))
    assert not change[~result.fooled].any()
    assert result.fooled.any()
    # The clean image and the result are asked about as well.
    assert set(result.queries[~result.fooled].tolist()) == {10}
    assert result.queries[result.fooled].max() <= 10
    more = RandomCorners(EPS, draws=40)(NET, data.images, data.labels)
    assert (more.fooled | ~result.fooled).all()
    assert more.fooled.sum() > result.fooled.sum()


def test_an_image_beyond_the_ball_is_no_success(data: ImageSet) -> None:
    few = data.subset(torch.arange(20))
    near, far = (
        Attempts(NET, few, eps=eps, steps=2, sources={}, queries=QUERIES, attack_seed=0, batch_size=60).decisions()
        for eps in (EPS, 1.0)
    )
    assert 0 < int(near.fooled.sum()) < int(far.fooled.sum()) == 20
