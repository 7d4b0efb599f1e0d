from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.engine import bench
from dcn_plugin.engine.bench import alternate, inference, measure_speed, relative_error
from dcn_plugin.errors import NotDefectiveError, SpecError
from tests.nets import SmallNet, same, shaken, snapshot

SIZE = (3, 16, 16)


def masked_net() -> nn.Module:
    return dcn.defectify(shaken(SmallNet()), p=0.4, input_size=SIZE).eval()


def test_a_speedup_is_the_median_of_the_ratios_of_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"slow": iter([9.0, 2, 12, 9]), "fast": iter([9.0, 1, 4, 2])}
    monkeypatch.setattr(bench, "_seconds", lambda call, device: next(call()))
    calls: dict[str, Callable[[], Iterator[float]]] = {name: (lambda name=name: times[name]) for name in times}
    found = alternate(calls, rounds=3, warm_up=1)
    # 2, 3 and 4.5, where the ratio of the medians is that of 9 and 2.
    assert found["fast"].speedup == 3
    assert found["fast"].quartiles == (2.5, 3.75)
    assert found["fast"].median_ms == 2000
    assert (found["slow"].speedup, found["slow"].median_ms) == (1, 9000)


def test_the_order_of_the_calls_turns_round_from_round_to_round() -> None:
    log: list[str] = []
    alternate({"a": lambda: log.append("a"), "b": lambda: log.append("b")}, settle=0, rounds=3, warm_up=2)
    assert "".join(log) == "aabb" + "ab" + "ba" + "ab"


@pytest.mark.parametrize("rounds", [0, 1, 2.0, True])
def test_one_round_has_no_quartiles(rounds: int) -> None:
    with pytest.raises(SpecError, match="two rounds"):
        alternate({"a": lambda: None}, rounds=rounds)


def test_what_is_timed_runs_under_inference_mode() -> None:
    seen: list[bool] = []

    def model(images: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_inference_mode_enabled())
        return images

    inference(model, torch.zeros(1))()
    assert seen == [True]


def test_a_relative_error_is_that_of_the_worst_image() -> None:
    expected = torch.tensor([[100.0, -200.0], [0.5, 1.0]])
    got = torch.tensor([[102.0, -200.0], [0.5, 1.25]])
    assert relative_error(expected, got) == 0.25
    assert relative_error(expected, expected.clone()) == 0
    assert relative_error(torch.zeros(1, 2), torch.ones(1, 2)) > 1e30


def test_a_measurement_says_what_ran_and_that_it_computes_the_same() -> None:
    model = masked_net()
    before = snapshot(model)
    found = measure_speed(model, batch_size=3, rounds=2, backend="reference")
    assert same(before, snapshot(model))
    assert (found.batch_size, found.backend) == (3, "reference")
    assert found.relative_error < 1e-4
    assert min(found.dense_ms, found.compact_ms, found.speedup, found.compact_seconds) > 0
    assert found.quartiles[0] <= found.speedup <= found.quartiles[1]
    assert found.ideal > 1
    record = found.to_json()
    assert record["share_of_ideal"] == found.speedup / found.ideal
    assert record["quartiles"] == list(found.quartiles)


def test_a_wrong_compact_model_shows_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = bench.compact

    class Wrong(nn.Module):
        def __init__(self, model: nn.Module, **options: object) -> None:
            super().__init__()
            self.fast = honest(model, backend="reference")
            self.plan, self.device, self.dtype = self.fast.plan, self.fast.device, self.fast.dtype

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fast(images) * 1.01

    monkeypatch.setattr(bench, "compact", Wrong)
    assert measure_speed(masked_net(), batch_size=2, rounds=2).relative_error == pytest.approx(0.01, rel=1e-2)


def test_a_model_without_masks_is_refused() -> None:
    with pytest.raises(NotDefectiveError):
        measure_speed(SmallNet().eval(), batch_size=1)


def test_each_call_that_counts_comes_right_after_one_of_its_own() -> None:
    said: list[str] = []
    alternate({name: lambda name=name: said.append(name) for name in "ab"}, rounds=2, warm_up=0, settle=1)
    assert "".join(said) == "aabbbbaa"
