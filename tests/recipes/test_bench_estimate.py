"""The benchmark of estimates: what it reads from a dry run, and that it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.bench_estimate import bench


@pytest.mark.parametrize(
    ("told", "hours", "kinds"),
    [
        (
            "expected time on this machine: about 2.5 h, between 90 min and 5.0 h (training 2.4 h, measuring 6 min; "
            "3 kinds of network timed, 2 scaled by multiply-adds)",
            [1.5, 2.5, 5.0],
            (3, 2),
        ),
        (
            "expected time on this machine: about 72 s, between 36 s and 3 min (training 60 s, measuring 12 s; "
            "1 kind of network timed)",
            [0.01, 0.02, 0.05],
            (1, 0),
        ),
    ],
)
def test_hours_and_kinds_are_read_from_what_a_dry_run_tells(
    told: str, hours: list[float], kinds: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done = subprocess.CompletedProcess([], 0, "", f"defective: {told}\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    row = bench.dry_run(["table05"], tmp_path, "off")
    assert row["hours"] == pytest.approx(hours) and (row["timed"], row["scaled"]) == kinds


def test_a_dry_run_that_tells_no_time_is_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", "all is there"))
    with pytest.raises(SystemExit, match="all is there"):
        bench.dry_run(["table05"], tmp_path, "off")


@pytest.mark.slow
def test_the_benchmark_runs_and_its_page_holds_what_it_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.bench_estimate.bench", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=bench.HERE.parents[1])
    record = json.loads((tmp_path / "record.json").read_text())
    page = (tmp_path / "README.md").read_text()
    assert [(row["machine"], row["run"]) for row in record["dry_runs"]] == [
        (machine, run) for machine in ("idle", "busy") for run in ("first", "second")
    ]
    assert all(0 < low <= likely <= high for low, likely, high in (row["hours"] for row in record["dry_runs"]))
    (row,) = record["trainings"]
    assert f"| {row['seconds']:.1f} |" in page
    assert page == bench.page(record)


def test_the_committed_page_is_made_from_the_record() -> None:
    record = json.loads((bench.HERE / "record.json").read_text())
    assert (bench.HERE / "README.md").read_text() == bench.page(record)
