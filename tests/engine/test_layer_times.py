"""What layers take, kept for all networks: files that cannot be right are as good as none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dcn_plugin.engine.layer_times import read_layer_times, write_layer_times

CPU = torch.device("cpu")
KINDS = {"16 images: a layer": [2.0, 1.0], "bandwidth": [1e6]}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCN_ENGINE_CACHE", str(tmp_path))
    return tmp_path


def test_what_is_written_is_read_and_joins_what_others_wrote(folder: Path) -> None:
    assert read_layer_times(CPU, "c") == {}
    write_layer_times(CPU, "c", KINDS)
    write_layer_times(CPU, "c", {"another layer": [3.0]})
    assert read_layer_times(CPU, "c") == KINDS | {"another layer": [3.0]}
    assert read_layer_times(CPU, "triton") == {}
    assert len(list(folder.glob("*.json"))) == 1


def test_times_with_another_number_of_threads_are_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_layer_times(CPU, "c", KINDS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert read_layer_times(CPU, "c") == {}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"key": 1}', "cut", "another key", "kinds are a list", "no kinds"]
)
def test_a_broken_or_foreign_file_is_as_good_as_none_and_written_anew(content: str, folder: Path) -> None:
    write_layer_times(CPU, "c", KINDS)
    (file,) = folder.glob("*.json")
    record = json.loads(file.read_bytes())
    broken = {
        "cut": file.read_text()[:-9],
        "another key": json.dumps(record | {"key": record["key"] | {"code": "of another version"}}),
        "kinds are a list": json.dumps(record | {"kinds": [1]}),
        "no kinds": json.dumps({"key": record["key"]}),
    }
    file.write_text(broken.get(content, content))
    assert read_layer_times(CPU, "c") == {}
    write_layer_times(CPU, "c", KINDS)
    assert read_layer_times(CPU, "c") == KINDS


@pytest.mark.parametrize("times", [[0.0], [-1.0], ["2"], [None], 5, [float("nan")], [float("inf")]])
def test_a_time_that_none_can_be_is_measured_anew(times: object, folder: Path) -> None:
    write_layer_times(CPU, "c", KINDS)
    (file,) = folder.glob("*.json")
    record = json.loads(file.read_bytes())
    record["kinds"]["bandwidth"] = times
    file.write_text(json.dumps(record))
    assert read_layer_times(CPU, "c") == {name: times for name, times in KINDS.items() if name != "bandwidth"}


@pytest.mark.parametrize("word", ["off", "0", "no", "False", ""])
def test_nothing_is_kept_where_the_switch_is_off(word: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_layer_times(CPU, "c", KINDS)
    monkeypatch.setenv("DCN_ENGINE_CACHE", word)
    write_layer_times(CPU, "c", {"another layer": [3.0]})
    assert read_layer_times(CPU, "c") == {}
    monkeypatch.setenv("DCN_ENGINE_CACHE", str(folder))
    assert read_layer_times(CPU, "c") == KINDS
