from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dcn_plugin.training import EpochRecord, History, TrainConfig, load_network, train
from tests.toys import image_set
from tests.training.resume_worker import make

CONFIG = TrainConfig(epochs=4, batch_size=8, lr=0.05)
DATA, VAL = image_set(24, shape=(1, 6, 6)), image_set(31, seed=2, shape=(1, 6, 6))


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
