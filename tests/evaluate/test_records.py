from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import Result, ResultFile, wilson
from tests.toy_records import record


@st.composite
def records(draw: st.DrawFn) -> Result:
    total = draw(st.integers(1, 500))
    clean = draw(st.integers(0, total))
    source_correct = draw(st.integers(0, total))
    fooled = draw(st.integers(0, source_correct))
    counted = draw(st.integers(0, min(fooled, clean)))
    defended = draw(st.integers(0, counted))
    correct = draw(st.integers(defended, total))
    return record(
        n_total=total,
        n_clean_correct=clean,
        n_source_correct=source_correct,
        n_source_fooled=fooled,
        n_counted=counted,
        n_defended=defended,
        n_correct=correct,
        eps=draw(st.floats(0, 1)),
        attack_settings={"eps": draw(st.floats(0, 1)), "random_start": draw(st.booleans()), "note": draw(st.text())},
        rounding=draw(st.sampled_from(["none", "8bit"])),
        seed=draw(st.integers(0, 2**64 - 1)),
    )


@given(result=records())
def test_a_record_survives_json(result: Result) -> None:
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result


@given(result=records())
def test_rates_and_intervals_follow_from_the_counts(result: Result) -> None:
    assert result.accuracy_all == result.n_correct / result.n_total
    assert result.accuracy_interval == wilson(result.n_correct, result.n_total)
    assert result.clean_accuracy == result.n_clean_correct / result.n_total
    if result.n_counted:
        assert result.defense_rate == result.n_defended / result.n_counted
        assert result.defense_interval == wilson(result.n_defended, result.n_counted)
    else:
        assert result.defense_rate is None
        assert result.defense_interval is None


def test_versions_and_hardware_are_noted_by_default() -> None:
    result = record()
    assert {"python", "torch", "timm", "numpy", "dcn-plugin"} <= result.versions.keys()
    assert {"processor", "cores", "threads", "device"} <= result.hardware.keys()


@pytest.mark.parametrize(
    "change",
    [
        {"n_total": 0, "n_clean_correct": 0, "n_counted": 0, "n_defended": 0, "n_correct": 0},
        {"n_clean_correct": 101},
        {"n_counted": 91},
        {"n_defended": 81},
        {"n_correct": 39},
        {"n_correct": 101},
        {"n_source_fooled": 79},
        {"n_source_correct": 84},
        {"n_zero_gradient": 101},
        {"n_total": 100.0},
        {"n_correct": -1},
        {"n_correct": True},
        {"seed": "0"},
        {"target": None},
        {"eps": float("nan")},
        {"eps": -0.1},
        {"eps": "0.1"},
        {"rounding": "16bit"},
        {"attack_settings": {"eps": [0.1]}},
        {"attack_settings": None},
        {"schema": 1},
    ],
    ids=str,
)
def test_counts_and_types_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    record()
    with pytest.raises(RecordError):
        record(**change)


@pytest.mark.parametrize(
    "edit",
    [
        lambda raw: raw.pop("n_total"),
        lambda raw: raw.update(extra=1),
        lambda raw: raw.update(defense_rate=0.99),
        lambda raw: raw.update(accuracy_interval=[0.0, 1.0]),
        lambda raw: raw.update(n_correct=raw["n_correct"] + 1),
        lambda raw: raw.update(schema=99),
    ],
)
def test_an_edited_record_is_refused(edit: Any) -> None:
    raw = record().to_dict()
    Result.from_dict(raw)
    edit(raw)
    with pytest.raises(RecordError):
        Result.from_dict(raw)


def test_passes_are_in_json_where_they_were_counted_and_fit_each_other() -> None:
    without, counted = record(), record(n_forward_passes=2200, n_backward_passes=2000)
    assert not {"n_forward_passes", "n_backward_passes"} & without.to_dict().keys()
    assert counted.to_dict() == {**without.to_dict(), "n_forward_passes": 2200, "n_backward_passes": 2000}
    assert Result.from_dict(json.loads(json.dumps(counted.to_dict()))) == counted
    assert Result.from_dict(without.to_dict()).n_forward_passes is None
    with pytest.raises(RecordError, match="n_backward_passes=3, n_forward_passes=2"):
        record(n_forward_passes=2, n_backward_passes=3)
    with pytest.raises(RecordError, match="n_forward_passes"):
        record(n_forward_passes=2.5)


def test_the_largest_change_is_in_json_where_it_was_measured_and_records_of_before_it_was_are_read() -> None:
    without, measured = record(), record(largest_change=0.19)
    assert "largest_change" not in without.to_dict()
    assert measured.to_dict() == {**without.to_dict(), "largest_change": 0.19}
    assert Result.from_dict(without.to_dict()).largest_change is None
    assert Result.from_dict(measured.to_dict()) == measured
    for wrong in (-0.1, float("nan"), "big", True):
        with pytest.raises(RecordError, match="largest_change"):
            record(largest_change=wrong)


def test_a_file_of_records_survives_the_disk(tmp_path: Path) -> None:
    file = ResultFile({"name": "demo", "eps": [0.1]}, (record(), record(target="other")), {"seconds": 1.5})
    file.write(tmp_path / "results.json")
    assert ResultFile.read(tmp_path / "results.json") == file


def test_the_same_results_give_the_same_bytes_whatever_the_run(tmp_path: Path) -> None:
    for name, seconds in (("a", 1), ("b", 2)):
        ResultFile({"name": "demo"}, (record(),), {"seconds": seconds}).write(tmp_path / name)
    first, second = ((tmp_path / name).read_text() for name in "ab")
    assert first.replace('"seconds": 1', '"seconds": 2') == second


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "\x00\xff",
        '{"schema": 2, "run": {}, "spec": {}, "results": 3}',
        '{"schema": 2}',
        '{"schema": 1, "run": {}, "spec": {}, "results": []}',
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RecordError, match="results"):
        ResultFile.read(tmp_path / "results.json")


def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    ResultFile({"name": "demo"}, (record(),)).write(path)
    whole = path.read_text()
    for length in range(0, len(whole) - 2, 97):
        path.write_text(whole[:length])
        with pytest.raises(RecordError):
            ResultFile.read(path)


def test_a_record_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().n_total = 5  # type: ignore[misc]
