"""The record of a run: which epoch is the best one, and a text that says the same."""

from __future__ import annotations

import json

import pytest
import torch

from dcn_plugin.training import EpochRecord, History


def record(epoch: int, val: float | None, progress: float | None = None) -> EpochRecord:
    return EpochRecord(epoch, 0.1, 1.0, 0.5, val, None, 1.5, progress)


def test_the_best_epoch_is_the_first_of_the_most_accurate() -> None:
    history = History({}, "val", [record(0, 0.5), record(1, 0.7), record(2, 0.7)])
    assert history.best == history.epochs[1]
    assert History({}, None, history.epochs).best is None
    assert History({}, "val").best is None


def test_an_epoch_whose_masks_were_on_their_way_is_not_the_best_one() -> None:
    epochs = [record(0, 0.9, 0.4), record(1, 0.8, 1.0), record(2, 0.7, 1.0)]
    assert History({}, "val", epochs).best == epochs[1]
    assert History({}, "val", epochs[:1]).best is None


@pytest.mark.parametrize("progress", [None, 0.25, 1.0])
def test_a_history_survives_json_and_says_nothing_of_masks_that_stay(progress: float | None) -> None:
    history = History({"config": {"lr": 0.1}}, "val", [record(0, 0.5, progress)])
    history.begin(torch.device("cpu"))
    text = history.to_json()
    assert History.from_json(text) == history
    assert ("mask_progress" in text) == (progress is not None)
    assert json.loads(text)["best"] == (None if progress == 0.25 else json.loads(text)["epochs"][0])


def test_sessions_add_up_to_precisions_and_engines() -> None:
    history = History({})
    assert (history.precision, history.engine) == (None, None)
    history.begin(torch.device("cpu"))
    history.epochs.append(record(0, None))
    history.begin(torch.device("cpu"), torch.bfloat16, "c: 3 of 5")
    assert [session["first_epoch"] for session in history.sessions] == [0, 1]
    assert (history.precision, history.engine) == ("float32, bfloat16", "c: 3 of 5")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "plan": {}, "selected_by": null}'])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        History.from_json(text)
