"""Kill a run with SIGKILL wherever it happens to be, start it again, and compare with one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from dcn_plugin.evaluate import ResultFile
from tests.evaluate import resume_worker
from tests.launched import kill_at_random

# Each run is a process of its own, forked off a server that has imported torch once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.evaluate.resume_worker"])


def start(folder: Path) -> ForkServerProcess:
    process = PROCESSES.Process(target=resume_worker.main, args=(str(folder),))
    process.start()
    return process


def finish(folder: Path) -> None:
    process = start(folder)
    process.join()
    assert process.exitcode == 0


def without_run(folder: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((folder / "results.json").read_text())
    del raw["run"]
    return raw


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_same_records(tmp_path: Path, kills: int) -> None:
    finish(tmp_path / "alone")
    killed = tmp_path / "killed"
    kill_at_random(
        lambda: start(killed), lambda: sum(1 for _ in killed.rglob("*.json")), kills=kills, seed=kills, longest=0.05
    )
    finish(killed)
    assert without_run(tmp_path / "killed") == without_run(tmp_path / "alone")
    run = ResultFile.read(tmp_path / "killed" / "results.json").run
    assert run["units_reused"] > 0  # what was finished before the last kill was not measured again
