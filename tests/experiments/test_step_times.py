from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from dcn_plugin.experiments import step_times
from dcn_plugin.experiments.datasets import DATA
from dcn_plugin.experiments.network_store import build
from dcn_plugin.experiments.networks import Job, jobs_of, read_network
from dcn_plugin.experiments.scales import scale_for
from dcn_plugin.experiments.step_times import (
    SERIAL,
    UNLIKE,
    WHOLE_BATCH,
    Kind,
    Span,
    StepTimes,
    Timed,
    multiply_adds,
    on_threads,
    time_step,
)
from dcn_plugin.training import TrainConfig

CPU = torch.device("cpu")
SCALE = scale_for("smoke", "cifar10")
SECOND_A_MILLION = 1e-6  # of multiply-adds


def job(text: str, net: str = "resnet18", *, width: int = 8, seed: int = 0) -> Job:
    (made,) = jobs_of(
        [read_network(text, net=net)], seed=seed, scale=dataclasses.replace(SCALE, width=width), data="digits"
    )
    return made


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A step takes a second for a million multiply-adds, in a VGG three; the networks that were timed."""
    names: list[str] = []

    def take(job: Job, work: float, device: torch.device) -> Timed:
        names.append(f"{job.network.net} {job.scale.width}")
        seconds = work * SECOND_A_MILLION * (3 if job.network.net == "vgg19" else 1)
        return Timed(seconds, 1.5 * seconds)

    monkeypatch.setattr(step_times, "_time", take)
    monkeypatch.setattr(step_times, "on_threads", lambda span, _: span)
    return names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCN_STEPS_CACHE", str(tmp_path / "steps"))
    return tmp_path / "steps"


def test_multiply_adds_are_those_of_a_convolution_and_a_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 8 * 8, 10))
    assert multiply_adds(net, (2, 3, 8, 8)) == 2 * (8 * 8 * 5 * 3 * 9 + 5 * 8 * 8 * 10)


def test_the_largest_part_of_the_work_is_timed_first_and_the_rest_is_scaled(timed: list[str]) -> None:
    times = StepTimes(CPU)
    few, many, wide = job("Standard", "vgg19"), job("0.3-Bottom"), job("Standard", width=16)
    times.measure([(few, 1), (many, 1000), (wide, 1)], budget=0)
    assert timed == ["resnet18 8"], "the budget is spent, but one is timed in any case"
    assert [times.is_timed(kind) for kind in (few, many, wide, job("Standard"))] == [False, True, False, True]
    # Of the same network at another width the multiply-adds are told apart, of another network also their price.
    for scaled in (wide, few):
        likely = times.work(scaled) * SECOND_A_MILLION
        assert times[scaled].likely == pytest.approx(likely)
        assert times[scaled].low == pytest.approx(likely / UNLIKE)
        assert times[scaled].high == pytest.approx(likely * UNLIKE)


def test_of_several_timed_networks_the_spread_is_that_of_their_prices(timed: list[str]) -> None:
    times, other = StepTimes(CPU), job("Standard", "densenet121")
    times.measure([(job("Standard", "vgg19"), 1), (job("Standard"), 1)])
    assert sorted(timed) == ["resnet18 8", "vgg19 8"]
    work = times.work(other) * SECOND_A_MILLION
    assert dataclasses.astuple(times[other]) == pytest.approx((work, work * math.sqrt(3), work * 3))
    # A network that was timed at another width speaks for itself.
    wide = job("Standard", "vgg19", width=16)
    assert times[wide].likely == pytest.approx(3 * times.work(wide) * SECOND_A_MILLION)


def test_what_was_timed_lies_between_its_fastest_and_its_slowest_step(timed: list[str]) -> None:
    times = StepTimes(CPU)
    times.measure([(job("Standard"), 2)])
    work = times.work(job("Standard")) * SECOND_A_MILLION
    total = times.total([(job("Standard"), 2), (job("Standard", seed=1), 1)])
    assert dataclasses.astuple(total) == pytest.approx((3 * WHOLE_BATCH * work, 3 * work, 4.5 * work))


def test_networks_of_other_widths_are_other_kinds() -> None:
    texts = ("Standard", "0.3-Bottom", "0.3-Bottom DC", "0.5-Bottom DC", "0.3-Bottom x2")
    assert len({Kind.of(job(text)) for text in texts}) == 4
    assert Kind.of(job("Standard")) == Kind.of(job("0.3-Bottom", seed=3))


def test_a_second_process_times_nothing_again(folder: Path, timed: list[str]) -> None:
    passes = [(job("Standard"), 1), (job("Standard", "vgg19"), 1)]
    first = StepTimes(CPU)
    first.measure(passes)
    assert len(timed) == 2
    again = StepTimes(CPU)
    again.measure(passes)
    assert len(timed) == 2 and again.total(passes) == first.total(passes)
    again.measure([*passes, (job("Standard", width=16), 1)])
    assert timed[2:] == ["resnet18 16"]
    assert len(StepTimes(CPU)._timed) == 3, "and what was known before is kept"


def test_one_thread_is_timed_so_that_their_number_changes_no_record(
    folder: Path, timed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    StepTimes(CPU).measure([(job("Standard"), 1)])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    StepTimes(CPU).measure([(job("Standard"), 1)])
    assert len(timed) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "no JSON",
        "[]",
        {"kinds": 3},
        {"kinds": [{"kind": {"net": "resnet18"}, "multiply_adds": 1, "seconds": None}]},
        {"kinds": [{"multiply_adds": 1}]},
    ],
)
def test_a_record_of_another_form_is_as_good_as_none(folder: Path, timed: list[str], damage: object) -> None:
    StepTimes(CPU).measure([(job("Standard"), 1)])
    (file,) = folder.iterdir()
    whole = json.loads(file.read_bytes())
    file.write_text(damage if isinstance(damage, str) else json.dumps({**whole, **damage}))  # type: ignore[dict-item]
    StepTimes(CPU).measure([(job("Standard"), 1)])
    assert len(timed) == 2 and json.loads(file.read_bytes()) == whole


@pytest.mark.parametrize("seconds", [[1.0, -1.0], [0.0, 1.0], [float("nan"), 1.0]])
def test_a_time_that_is_none_is_measured_anew(folder: Path, timed: list[str], seconds: list[float]) -> None:
    StepTimes(CPU).measure([(job("Standard"), 1)])
    (file,) = folder.iterdir()
    whole = json.loads(file.read_bytes())
    whole["kinds"][0]["seconds"] = seconds
    file.write_text(json.dumps(whole))
    StepTimes(CPU).measure([(job("Standard"), 1)])
    assert len(timed) == 2


def test_only_the_time_of_the_computing_thread_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that another program uses stops this one for a while; that is none of the step's time."""

    class Stopped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.threads = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.threads.append(torch.get_num_threads())
            time.sleep(0.2)
            return self.inner(x)

    net = Stopped()
    timed = time_step(net, torch.rand(1, 3, 2, 2), TrainConfig())
    assert 0 < timed.fastest <= timed.slowest < 0.2
    assert net.threads == [1, 1, 1]


def test_a_step_that_fails_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError):
        time_step(nn.Linear(3, 3), torch.rand(1, 3, 2, 2), TrainConfig())
    assert torch.get_num_threads() == before


def test_threads_shorten_a_step_by_amdahls_law(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Span(1.0, 1.0, 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert on_threads(one, CPU) == one
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert dataclasses.astuple(on_threads(one, CPU)) == tuple(serial + (1 - serial) / 4 for serial in SERIAL)
    assert on_threads(one, torch.device("cuda")) == one, "there time is what passed"


def test_a_network_is_timed_without_its_defence_and_under_one_set_of_masks() -> None:
    (redrawn,) = jobs_of(
        [read_network({"variant": "0.3-Bottom", "redrawn": 5}, net="resnet18")],  # type: ignore[arg-type]
        seed=0,
        scale=SCALE,
        data="digits",
    )
    shape = (1, *DATA["digits"].shape)
    assert StepTimes(CPU).work(redrawn) == multiply_adds(build(job("0.3-Bottom")), shape)
