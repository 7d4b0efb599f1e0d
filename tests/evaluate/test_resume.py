"""Kill a run with SIGKILL wherever it happens to be, start it again, and compare with one that was left alone."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from dcn_plugin.evaluate import ResultFile
from tests.evaluate import resume_worker

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


def kill_at_random(folder: Path, *, kills: int, seed: int) -> None:
    """Kill the run ``kills`` times while it is measuring, then let it finish."""
    moments = random.Random(seed)
    done = 0
    for _ in range(kills):
        process = start(folder)
        # Once more is on disk than at the last kill, the run is past what it reuses.
        while process.is_alive() and sum(1 for _ in folder.rglob("*.json")) <= done:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        done = sum(1 for _ in folder.rglob("*.json"))
    finish(folder)


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_with_the_same_records(tmp_path: Path, kills: int) -> None:
    finish(tmp_path / "alone")
    kill_at_random(tmp_path / "killed", kills=kills, seed=kills)
    assert without_run(tmp_path / "killed") == without_run(tmp_path / "alone")
    run = ResultFile.read(tmp_path / "killed" / "results.json").run
    assert run["units_reused"] > 0  # what was finished before the last kill was not measured again
