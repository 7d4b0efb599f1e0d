from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dcn_plugin.attacks import CW
from dcn_plugin.errors import ModelOutputError, SpecError
from tests.attack_oracles import Counting, RowNet, closest_boundary, grey, right
from tests.toys import images, linear_model


def margins(model: nn.Module, adversarial: Tensor, truth: Tensor) -> Tensor:
    """Largest other logit minus that of the true class, (N,)."""
    with torch.no_grad():
        logits = model(adversarial)
    own = F.one_hot(truth, logits.shape[1]).bool()
    return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]


def plane() -> tuple[nn.Module, nn.Linear]:
    model = linear_model(16, classes=2, dtype=torch.float64)
    layer = model[1]  # type: ignore[index]
    assert isinstance(layer, nn.Linear)
    return model, layer


@pytest.mark.parametrize("clean", [grey(10), images(10, dtype=torch.float64)], ids=["inside", "at the edges"])
def test_it_finds_the_closest_point_of_a_plane(clean: Tensor) -> None:
    model, layer = plane()
    truth = right(model, clean)
    result = CW(steps=400)(model, clean, truth)
    found = (result.distance * 16 / closest_boundary(layer, clean, truth)).sqrt()
    assert result.fooled.all()
    assert (found >= 1 - 1e-9).all()
    assert found.median() < 1.005
    assert found.max() < 1.02


@pytest.mark.parametrize("confidence", [0.5, 2.0])
def test_the_confidence_is_reached_and_little_more(confidence: float) -> None:
    model, clean = RowNet(), images(10, dtype=torch.float64)
    truth = right(model, clean)
    result = CW(confidence=confidence, steps=80, step_size=0.02)(model, clean, truth)
    reached = margins(model, result.images, truth)
    assert result.fooled.double().mean() > 0.8
    assert (reached[result.fooled] >= confidence).all()
    assert reached[result.fooled].median() < 1.1 * confidence
    plain = CW(steps=80, step_size=0.02)(model, clean, truth)
    both = plain.fooled & result.fooled
    assert (plain.distance[both] < result.distance[both]).all()


def test_a_confidence_out_of_reach_brings_the_image_back_clean() -> None:
    model, clean = RowNet(), images(4, dtype=torch.float64)
    truth = right(model, clean)
    result = CW(confidence=1e6, steps=5, c_max=1.0)(model, clean, truth)
    assert result.status == ["not fooled"] * 4
    assert torch.equal(result.images, clean)
    assert result.distance.isnan().all()


def test_logits_that_are_all_negative_make_no_difference() -> None:
    class LogSoftmax(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return F.log_softmax(self.model(x), dim=1)

    model, clean = RowNet(), images(6, dtype=torch.float64)
    truth = right(model, clean)
    attack = CW(steps=60, step_size=0.02, bisections=2)
    plain, negative = attack(model, clean, truth), attack(LogSoftmax(model), clean, truth)
    assert plain.fooled.all()
    # Differences of logits are those of log-probabilities.
    torch.testing.assert_close(negative.images, plain.images, rtol=0, atol=1e-6)
    shifted = attack(_Shifted(model), clean, truth)
    torch.testing.assert_close(shifted.images, plain.images, rtol=0, atol=1e-6)


class _Shifted(nn.Module):
    """Logits far below those a masking constant of -1e4 would stand for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        shifted: Tensor = self.model(x) - 2.0**20
        return shifted


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_pixels_exactly_at_the_edge_move(value: float) -> None:
    model, layer = plane()
    clean = torch.full((1, 1, 4, 4), value, dtype=torch.float64)
    truth = right(model, clean)
    with torch.no_grad():
        layer.bias[1 - truth] -= 0.5 - margins(model, clean, truth).abs()  # half a logit from the border
    result = CW(steps=200)(model, clean, truth)
    assert result.fooled.all()
    assert ((result.images - clean).abs() > 1e-3).sum() >= 4
    exact = closest_boundary(layer, clean, truth)
    assert (result.distance * 16 / exact).sqrt() < 1.03


def test_a_sample_gets_the_same_image_whatever_its_batch_is_made_of() -> None:
    model, clean = RowNet(), images(6, dtype=torch.float64)
    truth = right(model, clean)
    attack = CW(steps=40, step_size=0.02, bisections=2)
    whole = attack(model, clean, truth)
    backwards = attack(model, clean.flip(0), truth.flip(0))
    alone = attack(model, clean[4:], truth[4:])
    # An easy and a hopeless neighbour: neither stops or delays the others.
    mixed = attack(model, torch.cat([clean, clean]), torch.cat([(truth + 1) % 3, truth]))
    assert torch.equal(backwards.images.flip(0), whole.images)
    assert torch.equal(alone.images, whole.images[4:])
    assert torch.equal(mixed.images[6:], whole.images)
    assert torch.equal(mixed.queries[6:], whole.queries)


def test_the_search_for_c_comes_closer_than_one_large_c() -> None:
    model, clean = RowNet(), images(12, dtype=torch.float64)
    truth = right(model, clean)
    searched = CW(steps=60, step_size=0.02)(model, clean, truth)
    fixed = CW(steps=60, step_size=0.02, c_start=100.0, c_max=100.0, bisections=0)(model, clean, truth)
    assert searched.fooled.all()
    assert searched.median_distance < 0.9 * fixed.median_distance


@pytest.mark.parametrize(("c_max", "rounds"), [(1e-3, 1), (1e-2, 2), (1e10, 14)])
def test_c_grows_up_to_its_limit_and_no_further(c_max: float, rounds: int) -> None:
    model = Counting(linear_model(16))
    clean = images(1)
    truth = right(model, clean)
    model.rows = 0
    CW(confidence=1e6, steps=3, c_max=c_max, early_stop=False)(model, clean, truth)
    assert model.rows == 1 + 3 * rounds + 1


def test_stopping_early_saves_queries_and_costs_little() -> None:
    model, clean = RowNet(), images(8, dtype=torch.float64)
    truth = right(model, clean)
    early, full = (
        CW(steps=150, step_size=0.02, bisections=2, early_stop=stop)(model, clean, truth) for stop in (True, False)
    )
    assert early.queries.sum() < 0.8 * full.queries.sum()
    assert early.median_distance < 1.02 * full.median_distance


def test_samples_without_a_gradient_are_counted() -> None:
    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).sum(1).clamp(max=8) / 8, torch.zeros(len(x))], dim=1)

    clean = torch.cat([torch.full((2, 1, 4, 4), 0.3), torch.full((2, 1, 4, 4), 0.9)])
    result = CW(steps=20, c_start=10.0, c_max=10.0)(Flat(), clean, torch.zeros(4, dtype=torch.int64))
    assert result.zero_gradient.tolist() == [False, False, True, True]


def test_half_precision_stays_half_precision_and_works() -> None:
    model, clean = linear_model(16).to(torch.bfloat16), images(8).bfloat16()
    truth = right(model, clean)
    result = CW(steps=50, step_size=0.05)(model, clean, truth)
    assert result.images.dtype == torch.bfloat16
    assert result.fooled.all()


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(ModelOutputError, match="another class"):
        CW(steps=1)(linear_model(16, classes=1), images(2), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(("given", "confidence"), [({}, 40.0), ({"confidence": 20.0}, 20.0)])
def test_the_papers_settings_are_those_of_the_authors_code(given: dict[str, float], confidence: float) -> None:
    settings = CW.paper(**given).settings
    assert settings["confidence"] == confidence
    assert settings["steps"] == 1000
    assert settings["step_size"] == 5e-4
    assert (settings["c_start"], settings["c_factor"], settings["c_max"]) == (1e-3, 10.0, 1e10)


@pytest.mark.parametrize(
    "bad",
    [
        {"confidence": -1.0},
        {"confidence": float("inf")},
        {"steps": 0},
        {"bisections": -1},
        {"step_size": 0.0},
        {"c_start": 0.0},
        {"c_start": 2.0, "c_max": 1.0},
        {"c_factor": 1.0},
        {"c_max": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        CW(**bad)  # type: ignore[arg-type]
