from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dcn_plugin.errors import DataError, RecordError
from dcn_plugin.evaluate import Result, ResultFile, RunDirectory
from dcn_plugin.report import adversarial_grids, load_run, write_report
from tests.toy_records import noise_record, record


def finished(folder: Path, *results: Result) -> Path:
    RunDirectory(folder).finish({}, results)
    return folder


def test_a_finished_run_is_read_with_its_facts(tmp_path: Path) -> None:
    finished(tmp_path / "run", record(), record(target="p=0.1"))
    report = load_run(tmp_path / "run", baseline="standard")
    assert list(report.results) == [record(), record(target="p=0.1")]
    assert report.title == "Results: run"
    assert report.findings
    assert report.intro == []
    assert report.facts["Records"] == "2"
    assert report.facts["Finished"].endswith("Z")


def test_a_results_file_alone_will_do(tmp_path: Path) -> None:
    finished(tmp_path, record())
    assert list(load_run(tmp_path / "results.json", title="Mine").results) == [record()]


def test_a_killed_run_gives_what_it_finished_and_says_so(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_unit({"unit": 1}, [record()])
    run.write_unit({"unit": 2}, [noise_record(), noise_record(target="p=0.1")])
    report = load_run(tmp_path / "run")
    assert sorted(r.protocol for r in report.results) == ["gaussian", "gaussian", "transfer"]
    assert "Not finished: run." in report.intro[0]


def test_a_damaged_unit_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = RunDirectory(tmp_path)
    run.write_unit({"unit": 1}, [record()])
    (tmp_path / "units" / "damaged.json").write_text('{"key": {}, "resu')
    assert list(load_run(tmp_path).results) == [record()]
    assert "damaged.json is left out" in caplog.text


@pytest.mark.parametrize("damage", ["", "null", "[]", '{"key": {}, "results": [1]}', '{"key": {}, "results": null}'])
def test_whatever_a_stopped_run_left_opens(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    RunDirectory(tmp_path).write_unit({"unit": 1}, [record()])
    for name in ("units/half.json", "sets/a/key.json", "seeds/seed-0.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(damage)
    (tmp_path / "sets/a/0000000000.safetensors").write_bytes(b"half")
    (tmp_path / "sets/b").mkdir()
    (tmp_path / "units/.1234.tmp").write_text("{")
    assert list(load_run(tmp_path).results) == [record()]
    assert adversarial_grids(tmp_path) == []
    for line in ("half.json is left out", "seed-0.json is left out", "key.json is left out"):
        assert line in caplog.text


def test_a_stopped_run_is_shown_beside_one_that_ended_in_the_same_folder(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.write_unit({"unit": 1}, [record()])
    finished(tmp_path, record())
    run.write_unit({"unit": 2}, [noise_record()])
    report = load_run(tmp_path)
    assert list(report.results) == [record(), noise_record()]
    assert len(report.intro) == 1
    assert "Not finished" in report.intro[0]
    assert report.facts["Finished"]


def test_what_a_stopped_run_measured_again_waits_for_its_end_and_is_announced(tmp_path: Path) -> None:
    finished(tmp_path, record(), noise_record())
    RunDirectory(tmp_path).write_unit({"unit": 1}, [record(n_correct=44), noise_record()])
    later = time.time_ns() + 10**9
    for file in (tmp_path / "units").iterdir():
        os.utime(file, ns=(later, later))
    report = load_run(tmp_path)
    assert list(report.results) == [record(), noise_record()]
    assert report.intro[0].startswith("Newer measurements of a run that was stopped, not shown: 1.")
    # A stale one is nobody's business.
    for file in (tmp_path / "units").iterdir():
        os.utime(file, ns=(0, 0))
    assert load_run(tmp_path).intro == []


def test_of_two_stopped_runs_the_newest_measurement_of_a_setting_counts(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for age, unit, n_correct in ((2, "a", 44), (1, "b", 43), (3, "c", 42)):
        run.write_unit({"unit": unit}, [record(n_correct=n_correct)])
        (file,) = {*(tmp_path / "units").iterdir()} - {*(tmp_path / "units").glob("*.old.json")}
        os.utime(file, ns=(10**9 * (9 - age), 10**9 * (9 - age)))
        file.rename(file.with_suffix(".old.json"))
    (result,) = load_run(tmp_path).results
    assert result.n_correct == 43


def test_a_damaged_results_file_costs_only_itself_where_measurements_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    RunDirectory(tmp_path).write_unit({"unit": 1}, [record()])
    (tmp_path / "results.json").write_text("{")
    report = load_run(tmp_path)
    assert list(report.results) == [record()]
    assert "Not finished" in report.intro[0]
    assert "results.json is left out" in caplog.text


def test_a_demonstration_that_was_stopped_shows_its_finished_seeds(tmp_path: Path) -> None:
    ResultFile({}, (record(seed=3),)).write(tmp_path / "seeds" / "seed-3.json")
    assert list(load_run(tmp_path).results) == [record(seed=3)]


def test_several_runs_are_merged_and_copies_count_once(tmp_path: Path) -> None:
    finished(tmp_path / "b", record(seed=1), record())
    finished(tmp_path / "a" / "deep", record())
    assert [r.seed for r in load_run(tmp_path).results] == [0, 1]


def test_two_runs_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    finished(tmp_path / "a", record())
    finished(tmp_path / "b", record(n_correct=44))
    with pytest.raises(RecordError, match="measured twice"):
        load_run(tmp_path).to_text()


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_nothing_there_is_a_named_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no results"):
        load_run(tmp_path / name)


def test_a_run_without_records_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no results"):
        load_run(finished(tmp_path))


def test_a_damaged_file_and_an_unknown_baseline_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="baseline"):
        load_run(finished(tmp_path, record()), baseline="nobody")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(RecordError, match="not a results file"):
        load_run(tmp_path)


def test_a_report_written_into_its_run_directory_changes_no_record(tmp_path: Path) -> None:
    finished(tmp_path, noise_record())
    before = (tmp_path / "results.json").read_bytes()
    write_report(load_run(tmp_path), tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before
    assert list(load_run(tmp_path).results) == [noise_record()]
