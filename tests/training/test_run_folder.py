from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.errors import CheckpointError
from dcn_plugin.models import cifar_resnet
from dcn_plugin.training import EpochRecord, History, TrainConfig, isolated_rng, load_network, save_network, train
from tests.toys import image_set
from tests.training.resume_worker import make

IMAGES = image_set(6, shape=(1, 8, 8)).images
CONFIG = TrainConfig(epochs=4, batch_size=8, lr=0.05)
DATA, VAL = image_set(24, shape=(1, 6, 6)), image_set(31, seed=2, shape=(1, 6, 6))


def net(*, seed: int = 0, p: float | None = None, normalized: bool = False) -> nn.Module:
    with isolated_rng(seed):
        model: nn.Module = cifar_resnet((1, 1, 1, 1), num_classes=3, in_chans=1, width=4)
    if p is not None:
        model = dcn.defectify(model, p=p, input_size=(1, 8, 8))
    return dcn.Normalized(model, [0.4], [0.2]) if normalized else model


@pytest.mark.parametrize("p", [None, 0.5])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_network_comes_back_as_it_was_saved(p: float | None, normalized: bool, tmp_path: Path) -> None:
    saved, other = net(p=p, normalized=normalized), net(seed=1, p=p, normalized=normalized)
    path = tmp_path / "net.safetensors"
    save_network(saved, path, metadata={"epoch": "3"})
    load_network(other, path)
    assert torch.equal(saved.eval()(IMAGES), other.eval()(IMAGES))
    first = path.read_bytes()
    with safetensors.safe_open(path, "pt") as file:
        told = file.metadata()
    assert (json.loads(told["training"]) if p is None else told)["epoch"] == "3"
    save_network(saved, path, metadata={"epoch": "3"})
    assert path.read_bytes() == first


def test_a_plain_file_opens_with_safetensors_alone_and_holds_tied_weights_twice(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    save_network(dcn.Normalized(model, [0.5], [0.5]), tmp_path / "net.safetensors", metadata={})
    state = safetensors.torch.load_file(tmp_path / "net.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("p", [None, 0.5])
def test_a_network_of_another_size_is_refused(p: float | None, tmp_path: Path) -> None:
    save_network(net(p=p), tmp_path / "net.safetensors", metadata={})
    with pytest.raises(CheckpointError):
        load_network(make() if p else nn.Linear(2, 2), tmp_path / "net.safetensors")


def test_best_is_the_first_epoch_with_the_highest_accuracy() -> None:
    def record(epoch: int, val: float, test: float) -> EpochRecord:
        return EpochRecord(epoch, 0.1, 1.0, 0.5, val, test, 1.0)

    epochs = [record(0, 0.2, 0.9), record(1, 0.7, 0.1), record(2, 0.7, 0.95), record(3, 0.6, 0.95)]
    assert History({}, "val", epochs).best == epochs[1]
    assert History({}, "test", epochs).best == epochs[2]
    assert History({}, None, epochs).best is None
    assert History({}, "val").best is None


def test_a_history_survives_json() -> None:
    history = History({"a": 1}, "val", [EpochRecord(0, 0.1, 1.0, 0.5, 0.25, None, 1.5)])
    history.begin(torch.device("cpu"))
    assert History.from_json(history.to_json()) == history
    with pytest.raises(ValueError, match="schema"):
        History.from_json(history.to_json().replace('"schema": 1', '"schema": 2'))


@pytest.mark.parametrize("select", ["val", "test", "last"])
def test_best_is_the_network_of_its_epoch_and_the_record_says_how_it_was_chosen(select: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, select=select)  # type: ignore[arg-type]
    test = image_set(31, seed=3, shape=(1, 6, 6))
    result = train(make(), DATA, config, val=VAL, test=test, out=tmp_path)
    recorded = json.loads((tmp_path / "history.json").read_text())
    if select == "last":
        assert result.best is None and recorded["selected_by"] is None and not (tmp_path / "best.safetensors").exists()
        return
    assert recorded["selected_by"] == recorded["plan"]["config"]["select"] == select
    measured, wanted = {"val": VAL, "test": test}[select], f"{select}_accuracy"
    accuracies = [record[wanted] for record in recorded["epochs"]]
    assert recorded["best"]["epoch"] == accuracies.index(max(accuracies))
    best = make()
    load_network(best, result.best or "")
    with torch.no_grad():
        right = (best.eval()(measured.images).argmax(1) == measured.labels).double().mean()
    assert float(right) == pytest.approx(max(accuracies))
    assert [record["test_accuracy"] is None for record in recorded["epochs"]] == [select != "test"] * CONFIG.epochs


def test_without_a_validation_set_nothing_is_chosen(tmp_path: Path) -> None:
    result = train(make(), DATA, CONFIG, out=tmp_path)
    assert result.best is None
    assert {path.name for path in tmp_path.iterdir()} == {"state.safetensors", "history.json", "last.safetensors"}
