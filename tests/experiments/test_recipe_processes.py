"""Recipes over several processes: threads of this one that meet in a list, and two launched ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import Team
from dcn_plugin.experiments import network_store as module
from dcn_plugin.experiments.network_store import TrainedNetworks
from dcn_plugin.experiments.recipe import load_recipe
from dcn_plugin.experiments.run import Outcome, plan_recipe, run_recipe
from tests.evaluate.teams import together
from tests.experiments.recipe_files import TINY, write_recipe
from tests.launched import launch

CPU = torch.device("cpu")
# Four batches for two processes, and pictures, which only one of them may write.
SHARED = (
    TINY.replace("images = 16", "images = 16\nbatch_size = 4")
    + """
[[measure]]
protocol = "images"
attacks = ["fgsm(16)"]
columns = "{attack}"
count = 4
"""
)


def run(recipe: Path, out: Path, team: Team | None = None, told: list[str] | None = None) -> Outcome:
    spec = load_recipe(recipe)
    plan = plan_recipe(spec, "smoke", out=out, device=CPU, accelerator=team)
    return run_recipe(plan, tell=None if told is None else told.append)


def kept(out: Path) -> dict[str, Any]:
    """Name -> content of every file of an output folder, but for what says when and how fast it was made."""
    found: dict[str, Any] = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and "networks" not in path.relative_to(out).parts
    }
    for name in [name for name in found if name.endswith("record.json")]:
        found[name] = json.loads(found[name]) | {"run": None}
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of one process."""
    folder = tmp_path_factory.mktemp("alone")
    run(write_recipe(folder, SHARED), folder / "out")
    return folder / "out"


def test_several_processes_leave_the_files_of_one(alone: Path, tmp_path: Path) -> None:
    out, told = tmp_path / "out", [[], []]  # type: ignore[var-annotated]
    recipe = write_recipe(tmp_path, SHARED)
    shutil.copytree(alone / "networks", out / "networks")
    first, second = together(2, lambda team: run(recipe, out, team, told[team.rank]))
    assert kept(out) == kept(alone)
    assert any(name.endswith(".png") for name in kept(out))
    assert (first.numbers, first.markdown, first.files) == (second.numbers, second.markdown, second.files)
    assert first.measured == second.measured == 2
    assert (len(told[0]), told[1]) == (2, [])


def test_the_first_process_says_what_is_finished(alone: Path, tmp_path: Path) -> None:
    spec = load_recipe(write_recipe(tmp_path, SHARED))

    def look(team: Team) -> tuple[int, int]:
        out = alone if team.leads else tmp_path / "empty"
        plan = plan_recipe(spec, "smoke", out=out, device=CPU, accelerator=team)
        return len(plan.train), len(plan.missing)

    assert together(2, look) == [(0, 0), (0, 0)]


def test_one_process_writes_and_clears_away_when_all_are_done(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop's own processes have a test of their own; here it only notes what it is given."""
    spec = load_recipe(write_recipe(tmp_path, SHARED))
    plan = plan_recipe(spec, "smoke", out=tmp_path / "out", device=CPU)
    job, given = plan.train[0], []

    def train(*args: Any, out: Path, accelerator: Team, **options: Any) -> None:
        given.append(accelerator)
        if accelerator.leads:
            (out / "state.safetensors").write_bytes(b"")
        accelerator.gather([])
        assert (out / "state.safetensors").exists()

    monkeypatch.setattr(module, "train", train)

    def work(team: Team) -> None:
        store = module.RunDirectory(tmp_path / "store")
        TrainedNetworks(tmp_path / "nets", plan.data, device=CPU, store=store, accelerator=team).train(job)

    together(2, work)
    assert sorted(team.rank for team in given) == [0, 1]
    assert [path.name for path in (tmp_path / "nets" / job.name).iterdir()] == ["network.json"]


def test_an_accelerator_of_another_precision_is_refused(tmp_path: Path) -> None:
    spec = load_recipe(write_recipe(tmp_path, SHARED))
    accelerator = SimpleNamespace(mixed_precision="bf16", process_index=0, num_processes=1, device=CPU)
    with pytest.raises(SpecError, match="precision"):
        plan_recipe(spec, "smoke", out=tmp_path / "out", accelerator=accelerator)


# One test, because its processes import everything anew.
@pytest.mark.slow
def test_two_launched_processes_train_together_and_measure_what_one_measures(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    recipe, shared, own = str(write_recipe(tmp_path, SHARED)), tmp_path / "shared", tmp_path / "own"
    done = launch("dcn_plugin.cli", "recipe", "run", recipe, "--out", str(shared))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Wrote ") == 3
    assert done.stderr.count("networks to train") == 1 and done.stderr.count("[1/3] training") == 1
    histories = [json.loads(path.read_text()) for path in shared.glob("networks/*/history.json")]
    assert [history["plan"]["processes"]["count"] for history in histories] == [2, 2, 2]
    assert not list(shared.glob("networks/*/state.safetensors"))
    # One process, with the networks of two.
    shutil.copytree(shared / "networks", own / "networks")
    done = launch("dcn_plugin.cli", "recipe", "run", recipe, "--out", str(own), processes=1)
    assert done.returncode == 0, done.stderr
    assert "0 of 3 networks to train, 2 of 2 cells to measure" in done.stderr
    assert kept(own) == kept(shared)
    # What fails on one ends all: only the first looks for finished measurements.
    (tmp_path / "broken" / "store").mkdir(parents=True)
    (tmp_path / "broken" / "store" / "units").write_text("a file")
    done = launch("dcn_plugin.cli", "recipe", "run", recipe, "--out", str(tmp_path / "broken"))
    assert done.returncode != 0
    assert "Not a directory" in done.stderr
