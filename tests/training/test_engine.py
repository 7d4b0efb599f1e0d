"""Runs whose steps the engine computes: the same networks up to rounding, and the same bits after a kill."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from dcn_plugin.data import ImageSet, load_digits
from dcn_plugin.engine import TrainingModel
from dcn_plugin.engine.training import model as engine_model
from dcn_plugin.errors import CheckpointError, CompactError, NotDefectiveError, SpecError
from dcn_plugin.models import cifar_resnet
from dcn_plugin.surgery import defectify, masks_of, undefectify
from dcn_plugin.training import Batch, TrainConfig, isolated_rng, madry, train
from dcn_plugin.training import engine as training_engine

CONFIG = TrainConfig(epochs=2, batch_size=16, lr=0.05, shift=1, ema_decay=0.9, engine="c", seed=3)
SMOOTH = dataclasses.replace(CONFIG, engine="dense")


@pytest.fixture(scope="module")
def data() -> ImageSet:
    return load_digits(size=16).train.subset(torch.arange(96))


def net() -> nn.Module:
    with isolated_rng(0):
        plain = cifar_resnet((1, 1, 1, 1), in_chans=1, width=4)
    return defectify(plain, p=0.4, input_size=(1, 16, 16))


def trained(data: ImageSet, config: TrainConfig, **options: Any) -> dict[str, torch.Tensor]:
    model = net()
    train(model, data, config, **options)
    return model.state_dict()


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[key].double() - second[key].double()).abs().max()) for key in first)


def test_the_engine_trains_the_same_network_up_to_rounding(data: ImageSet) -> None:
    dense, fast = (trained(data, config) for config in (SMOOTH, CONFIG))
    assert dense.keys() == fast.keys()
    assert largest_difference(dense, fast) < 2e-3
    # The masks, and how often each norm has seen a batch, are no matter of rounding.
    exact = [key for key, value in dense.items() if not value.is_floating_point()]
    assert all(torch.equal(dense[key], fast[key]) for key in exact) and exact


def test_adversarial_training_attacks_the_same_network(data: ImageSet) -> None:
    small, hook = data.subset(torch.arange(32)), madry(0.1, steps=1)
    states = [trained(small, dataclasses.replace(config, epochs=1), step_images=hook) for config in (SMOOTH, CONFIG)]
    assert largest_difference(*states) < 2e-3


class Failing:
    """Fails at one step."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __repr__(self) -> str:
        return "Failing()"

    def __call__(self, model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        self.left -= 1
        if self.left == 0:
            raise InterruptedError
        return batch


def test_a_run_that_was_stopped_ends_with_the_same_bits(data: ImageSet, tmp_path: Path) -> None:
    alone = trained(data, CONFIG, out=tmp_path / "alone", step_images=Failing(-1))
    with pytest.raises(InterruptedError):
        trained(data, CONFIG, out=tmp_path / "stopped", step_images=Failing(9))
    again = trained(data, CONFIG, out=tmp_path / "stopped", step_images=Failing(-1))
    assert all(torch.equal(alone[key], again[key]) for key in alone)


def test_a_run_goes_on_with_what_it_measured_at_its_start(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = training_engine.compact_training

    def watched(model: nn.Module, **options: Any) -> TrainingModel:
        asked.append(options["rows"])
        # Timings that differ from session to session must not change the run.
        options["rows"] = ("layer1.0.conv2",) if options["rows"] is None else options["rows"]
        return real(model, **options)

    monkeypatch.setattr(training_engine, "compact_training", watched)
    config = dataclasses.replace(CONFIG, engine="auto")
    with pytest.raises(InterruptedError):
        trained(data, config, out=tmp_path, step_images=Failing(9))
    trained(data, config, out=tmp_path, step_images=Failing(-1))
    assert asked == [None, ("layer1.0.conv2",)]
    sessions = json.loads((tmp_path / "history.json").read_text())["sessions"]
    assert [session["engine"] for session in sessions] == ["c: 1 of 12 convolutions on the neurons that exist"] * 2


def test_auto_leaves_a_network_alone_whose_step_gets_no_faster(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_model, "seconds", lambda call: call() or 1.0)
    config = dataclasses.replace(CONFIG, epochs=1, engine="auto")
    fast = trained(data, config, out=tmp_path)
    dense = trained(data, dataclasses.replace(SMOOTH, epochs=1))
    assert all(torch.equal(dense[key], fast[key]) for key in dense)
    (session,) = json.loads((tmp_path / "history.json").read_text())["sessions"]
    assert session["engine"].startswith("dense: ")


def test_auto_trains_what_the_engine_cannot_follow(data: ImageSet, tmp_path: Path) -> None:
    model = undefectify(net())
    train(model, data, dataclasses.replace(CONFIG, epochs=1, engine="auto"), out=tmp_path)
    (session,) = json.loads((tmp_path / "history.json").read_text())["sessions"]
    assert "no defective neurons" in session["engine"]


def test_live_statistics_train_another_network(data: ImageSet) -> None:
    whole, live = (trained(data, dataclasses.replace(CONFIG, norm_statistics=kind)) for kind in ("all", "live"))
    assert largest_difference(whole, live) > 1e-2


def test_what_cannot_be_done_is_refused_by_name(data: ImageSet) -> None:
    with pytest.raises(NotDefectiveError):
        train(undefectify(net()), data, CONFIG)
    with pytest.raises(CompactError, match="hooks"):
        model = net()
        model.get_submodule("layer1").register_forward_hook(lambda *_: None)
        train(model, data, CONFIG)
    for change in ({"engine": "fast"}, {"compile": True}, {"norm_statistics": "live", "engine": "dense"}):
        with pytest.raises(SpecError):
            dataclasses.replace(CONFIG, **change)  # type: ignore[arg-type]


def test_another_engine_is_another_run(data: ImageSet, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, epochs=1)
    trained(data, config, out=tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.engine"):
        trained(data, dataclasses.replace(config, engine="dense"), out=tmp_path)


def test_runs_of_before_are_known_by_the_same_text() -> None:
    assert "engine" not in SMOOTH.to_json() and "norm_statistics" not in SMOOTH.to_json()
    assert TrainConfig.from_json(CONFIG.to_json()) == CONFIG


def test_while_masks_change_the_network_computes_and_then_the_engine(
    data: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradual = {"gradual": "linear", "gradual_share": 0.5}
    forward, steps = TrainingModel.forward, []

    def watch(self: TrainingModel, images: torch.Tensor) -> Any:
        if self.model.training and torch.is_grad_enabled():
            steps.append(all(torch.equal(mask.seeded(), mask.mask) for mask in masks_of(self.model).values()))
        return forward(self, images)

    monkeypatch.setattr(TrainingModel, "forward", watch)
    fast = trained(data, dataclasses.replace(CONFIG, **gradual), out=tmp_path / "alone", step_images=Failing(-1))
    # The sixth of twelve steps is the first one with the masks of the goal.
    assert len(steps) >= 7 and all(steps)
    dense = trained(data, dataclasses.replace(SMOOTH, **gradual))
    assert largest_difference(dense, fast) < 2e-3
    with pytest.raises(InterruptedError):
        trained(data, dataclasses.replace(CONFIG, **gradual), out=tmp_path / "killed", step_images=Failing(8))
    again = trained(data, dataclasses.replace(CONFIG, **gradual), out=tmp_path / "killed", step_images=Failing(-1))
    assert all(torch.equal(again[key], fast[key]) for key in fast)


def test_statistics_of_live_neurons_do_not_go_with_masks_that_change() -> None:
    with pytest.raises(SpecError, match="norm_statistics"):
        dataclasses.replace(CONFIG, norm_statistics="live", gradual="linear")
