from __future__ import annotations

import errno
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import DataError
from dcn_plugin.evaluate import AdversarialSet, ResultFile, RunDirectory, add_results, gaussian, transfer, whitebox
from dcn_plugin.evaluate.run_directory import run_folders, stored_sets, stored_units
from dcn_plugin.evaluate.session import Session, Unit
from dcn_plugin.support.processes import ALONE
from tests.evaluate.conftest import Asked
from tests.toy_records import noise_record, record

ATTACK = PGD(0.15, steps=3)
KEY = {"protocol": "transfer", "eps": 0.1}


def asked(models: dict[str, Asked]) -> int:
    return sum(model.rows for model in models.values())


def test_a_unit_comes_back_as_it_was_written(tmp_path: Path) -> None:
    results = (record(), record(target="other", n_defended=None, n_correct=None, figures={"median": 0.25}, passed=True))
    RunDirectory(tmp_path).write_unit(KEY, results)
    assert RunDirectory(tmp_path).read_unit(KEY) == results
    assert RunDirectory(tmp_path).read_unit({**KEY, "eps": 0.2}) is None
    assert RunDirectory(tmp_path, fresh=True).read_unit(KEY) is None


def test_the_key_stands_in_words_beside_what_it_keeps(tmp_path: Path, models: dict[str, Asked], data: ImageSet) -> None:
    list(AdversarialSet("a", models["a"], ATTACK, data, "8bit", 32, RunDirectory(tmp_path)))
    (described,) = tmp_path.glob("sets/*/key.json")
    key = json.loads(described.read_text())
    assert key["attack"]["settings"]["eps"] == 0.15
    assert key["data"]["content"] == data.content_hash
    assert {"source", "versions", "hardware", "code", "rounding", "batch_size"} <= key.keys()


def test_what_is_stored_is_read_back_with_the_names_of_source_and_attack(
    tmp_path: Path, models: dict[str, Asked], data: ImageSet
) -> None:
    adversarial = AdversarialSet("a", models["a"], ATTACK, data, "8bit", 32, RunDirectory(tmp_path))
    batches = list(adversarial)
    (images,) = stored_sets(tmp_path)
    assert (images.source, images.attack, images.eps, images.rounding) == ("a", "PGD", 0.15, "8bit")
    assert images.data_hash == data.content_hash
    for stored, batch in zip(images.batches(), batches, strict=True):
        assert stored.first == batch.first
        assert torch.equal(stored.images.float() / 255, batch.images)
        assert torch.equal(stored.fooled, batch.fooled)
    assert {"clean", "labels", "said"} == next(images.batches()).examples.keys()
    # The names are for people: the same weights under another name find the same images.
    assert "a" not in json.loads((images.path / "key.json").read_text()).values()
    rows = models["a"].rows
    list(AdversarialSet("b", models["a"], ATTACK, data, "8bit", 32, RunDirectory(tmp_path)))
    assert models["a"].rows == rows


def test_run_folders_are_those_that_ended_or_hold_a_measurement_and_are_left_as_they_are(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "b" / "deep").finish({}, [record()])
    RunDirectory(tmp_path / "a").write_unit(KEY, [record(), noise_record()])
    RunDirectory(tmp_path / "a" / "inside").finish({}, [record()])
    (tmp_path / "empty").mkdir()
    draft = tmp_path / "a" / "units" / ".dcn-0123456789abcdef.tmp"
    draft.touch()
    killed, ended = run_folders(tmp_path)
    assert (killed, ended) == (tmp_path / "a", tmp_path / "b" / "deep")
    assert [unit.results() for unit in stored_units(killed)] == [[record(), noise_record()]]
    assert draft.exists()
    assert run_folders(tmp_path / "absent") == []


@pytest.mark.parametrize("damage", [b"", b"{", b'{"key": 1}', b"\xff\xfe", b"[]"])
def test_a_damaged_unit_is_measured_again(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store = RunDirectory(tmp_path)
    store.write_unit(KEY, [record()])
    (path,) = tmp_path.glob("units/*.json")
    path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert store.read_unit(KEY) is None
    assert "measured again" in caplog.text or damage == b'{"key": 1}'
    session = Session(training_seed=0, batch_size=1, store=store, team=ALONE, progress=False)
    assert session.recall(Unit.whole("", lambda: KEY, lambda _: [record()])) == [record()]
    assert RunDirectory(tmp_path).read_unit(KEY) == (record(),)


def test_a_second_run_asks_no_model_and_gives_the_same_records(
    tmp_path: Path, models: dict[str, Asked], data: ImageSet
) -> None:
    def run() -> list[object]:
        store = RunDirectory(tmp_path)
        return [
            *transfer(models, models, [ATTACK], data, seed=0, store=store),
            *whitebox(models, [ATTACK], data, seed=0, store=store),
            *gaussian(models, data, [0.1, 0.2], seed=0, store=store),
        ]

    first = run()
    rows = asked(models)
    assert run() == first
    assert asked(models) == rows > 0


def test_a_new_target_is_measured_on_the_images_that_are_there(
    tmp_path: Path, models: dict[str, Asked], data: ImageSet
) -> None:
    source = {"a": models["a"]}
    list(transfer(source, source, [ATTACK], data, seed=0, store=RunDirectory(tmp_path)))
    rows = models["a"].rows
    both = list(transfer(source, models, [ATTACK], data, seed=0, store=RunDirectory(tmp_path)))
    assert models["a"].rows == rows + 1  # one black image shows whether a model takes the data
    assert models["b"].rows == 2 * len(data) + 1
    assert both == list(transfer(source, models, [ATTACK], data, seed=0))


@torch.no_grad()
def test_a_changed_weight_is_noticed(tmp_path: Path, models: dict[str, Asked], data: ImageSet) -> None:
    before = list(whitebox({"a": models["a"]}, [ATTACK], data, seed=0, store=RunDirectory(tmp_path)))
    next(models["a"].parameters()).mul_(-1)
    after = list(whitebox({"a": models["a"]}, [ATTACK], data, seed=0, store=RunDirectory(tmp_path)))
    assert before[0].n_clean_correct != after[0].n_clean_correct


def test_what_has_no_key_is_measured_every_time_and_the_log_says_so(
    tmp_path: Path, models: dict[str, Asked], data: ImageSet, caplog: pytest.LogCaptureFixture
) -> None:
    attack = PGD(0.15, steps=2)
    attack.helper = object()  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING):
        first = list(whitebox({"a": models["a"]}, [attack], data, seed=0, store=RunDirectory(tmp_path)))
    assert "no key" in caplog.text
    rows = models["a"].rows
    assert list(whitebox({"a": models["a"]}, [attack], data, seed=0, store=RunDirectory(tmp_path))) == first
    assert models["a"].rows == 2 * rows
    assert not list(tmp_path.rglob("*.json"))


def test_a_full_disk_loses_nothing_that_was_written(
    tmp_path: Path, models: dict[str, Asked], data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.replace, [3]

    def replace(source: str, target: str) -> None:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        left[0] -= 1
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        list(transfer(models, models, [ATTACK], data, seed=0, batch_size=32, store=RunDirectory(tmp_path)))
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(os, "replace", real)
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert kept
    results = list(transfer(models, models, [ATTACK], data, seed=0, batch_size=32, store=RunDirectory(tmp_path)))
    assert results == list(transfer(models, models, [ATTACK], data, seed=0, batch_size=32))
    assert all(path.read_bytes() == content for path, content in kept.items())


def test_finish_writes_every_record_in_order(tmp_path: Path) -> None:
    results = [record(target=name) for name in "abc"]
    assert RunDirectory(tmp_path).finish({"n": 1}, results) == ResultFile.read(tmp_path / "results.json")
    assert [r.target for r in ResultFile.read(tmp_path / "results.json").results] == ["a", "b", "c"]


def test_every_run_joins_the_results_and_the_newest_record_of_a_setting_stays(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    store.finish({"n": 1}, [record(target="a"), record(target="b")])
    store.finish({"n": 2}, [record(seed=1)])
    store.finish({"n": 3}, [noise_record()])
    store.finish({"n": 4}, [record(target="b", n_correct=44, hardware={"machine": "other"}), record(target="c")])
    whole = ResultFile.read(tmp_path / "results.json")
    assert [(r.protocol, r.seed, r.target, r.n_correct) for r in whole.results] == [
        ("transfer", 0, "a", 45),
        ("transfer", 0, "b", 44),
        ("transfer", 1, "standard", 45),
        ("gaussian", 0, "standard", 45),
        ("transfer", 0, "c", 45),
    ]
    assert whole.spec["runs"] == {
        "transfer seed 0": {"n": 1},
        "transfer seed 1": {"n": 2},
        "gaussian seed 0": {"n": 3},
        "transfer seed 0 (2)": {"n": 4},
    }


def test_the_same_run_again_changes_nothing_and_settings_of_which_no_record_is_left_go(tmp_path: Path) -> None:
    store = RunDirectory(tmp_path)
    beside = {"transfer seed 0": {"n": 0}}
    store.finish({"n": 0}, [record(target="kept")])
    for settings, results in (({"n": (1,)}, [record()]), ({"n": 2}, [noise_record()]), ({"n": (1,)}, [record()])):
        whole = store.finish(settings, results)
    assert whole.results == (record(target="kept"), record(), noise_record())
    assert whole.spec["runs"] == {**beside, "transfer seed 0 (2)": {"n": [1]}, "gaussian seed 0": {"n": 2}}
    whole = store.finish({"n": 3}, [record(n_correct=44), record(target="kept")])
    assert whole.spec["runs"] == {"gaussian seed 0": {"n": 2}, "transfer seed 0": {"n": 3}}


@pytest.mark.parametrize(
    "change",
    [
        {"target": "x"}, {"source": "x"}, {"data": "x"}, {"data_hash": "1" * 64}, {"seed": 1}, {"attack": "x"},
        {"eps": 0.1}, {"attack_settings": {"eps": 0.2, "steps": 21}}, {"attack_settings": {"eps": 0.2}},
        {"rounding": "8bit"}, {"protocol": "tapm"},
    ],
)  # fmt: skip
def test_a_record_of_another_setting_stays_beside_the_first(tmp_path: Path, change: dict[str, object]) -> None:
    RunDirectory(tmp_path).finish({}, [record()])
    RunDirectory(tmp_path).finish({}, [record(**change)])
    assert ResultFile.read(tmp_path / "results.json").results == (record(), record(**change))


def test_runs_that_end_at_once_lose_no_record(tmp_path: Path) -> None:
    def run(number: int) -> None:
        for part in range(5):
            RunDirectory(tmp_path).finish({"n": number}, [record(target=f"{number}.{part}")])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(8)))
    whole = ResultFile.read(tmp_path / "results.json")
    assert len(whole.results) == 40
    assert sorted(settings["n"] for settings in whole.spec["runs"].values()) == list(range(8))
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_lock_left_by_a_killed_run_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / ".results.json.lock").touch()
    RunDirectory(tmp_path).finish({}, [record()])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_a_results_file_of_another_writer_keeps_its_records_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert add_results(path, {"demo": 1}, [noise_record()], {}).spec == {"demo": 1}
    RunDirectory(tmp_path).finish({"n": 1}, [record()])
    whole = ResultFile.read(path)
    assert whole.results == (noise_record(), record())
    assert whole.spec == {"runs": {"run": {"demo": 1}, "transfer seed 0": {"n": 1}}}
    whole = add_results(path, {"demo": 1}, [noise_record()], {})
    assert whole.spec == {"runs": {"run": {"demo": 1}, "transfer seed 0": {"n": 1}}}


def test_a_damaged_results_file_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "results.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        whole = RunDirectory(tmp_path).finish({}, [record()])
    assert ResultFile.read(tmp_path / "results.json") == whole
    assert "written anew" in caplog.text


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="folder"):
        RunDirectory(tmp_path / "file")
