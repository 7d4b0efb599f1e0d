from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.evaluate import ResultFile
from dcn_plugin.experiments import run as module
from dcn_plugin.experiments.network_store import TrainedNetworks
from dcn_plugin.experiments.recipe import load_recipe
from dcn_plugin.experiments.run import Outcome, Plan, plan_recipe, run_recipe
from tests.experiments.recipe_files import TINY, write_recipe
from tests.image_files import write_folder


def plan(folder: Path, text: str = TINY, *, name: str = "tiny", seeds: tuple[int, ...] = (0,)) -> Plan:
    recipe = load_recipe(write_recipe(folder, text, name=name))
    return plan_recipe(recipe, "smoke", out=folder / "out", seeds=seeds, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("tiny")
    return folder, run_recipe(plan(folder), command="defective recipe run tiny")


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is trained and measured from here on."""
    done: list[str] = []
    monkeypatch.setattr(TrainedNetworks, "train", _told(done, TrainedNetworks.train, "train"))
    monkeypatch.setattr(module, "measure", _told(done, module.measure, "measure"))
    return done


def _told(done: list[str], work: Callable[..., Any], what: str) -> Callable[..., Any]:
    def spy(*args: Any, **options: Any) -> Any:
        done.append(what)
        return work(*args, **options)

    return spy


def test_the_table_shows_the_papers_number_beside_ours(once: tuple[Path, Outcome]) -> None:
    _, outcome = once
    by_place = {(number.row, number.column): number for number in outcome.numbers}
    number = by_place["ResNet-18 0.3-Bottom", "src_resnet18"]
    assert number.paper == 78.23
    clean = by_place["ResNet-18 0.3-Bottom", "clean"]
    assert clean.ours is not None
    assert f"{clean.ours:.2f} (91.83)" in outcome.markdown
    assert "78.23" in outcome.markdown
    assert "Scale smoke: width 8, 1 epochs" in outcome.markdown


def test_the_record_says_how_it_was_made(once: tuple[Path, Outcome]) -> None:
    folder, outcome = once
    record = ResultFile.read(folder / "out" / "tiny" / "smoke" / "record.json")
    assert record.run["command"] == "defective recipe run tiny"
    assert record.spec["scale"]["width"] == 8
    assert {"torch", "timm", "numpy"} <= set(record.spec["versions"])
    assert record.spec["hardware"]["device"] == "cpu"
    assert [network["title"] for network in record.spec["networks"]] == [
        "ResNet-18 Standard",
        "ResNet-18 0.3-Bottom",
        "ResNet-18 Standard (source)",
    ]
    assert all(network["loss"] > 0 for network in record.spec["networks"])
    assert {network["precision"] for network in record.spec["networks"]} == {"float32"}
    assert "one-cycle, lr 0.05, float32" in outcome.markdown
    assert len(record.results) == len([number for number in outcome.numbers if number.column != "clean"])


def test_a_second_run_trains_and_measures_nothing_and_writes_the_same(
    once: tuple[Path, Outcome], spied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = once
    # Neither a network nor an image is opened.
    monkeypatch.setattr(TrainedNetworks, "open", None)
    monkeypatch.setattr(module, "estimate", None)
    again = plan(folder)
    assert (again.train, again.missing) == ((), [])
    outcome = run_recipe(again)
    assert spied == []
    assert (outcome.numbers, outcome.markdown) == (first.numbers, first.markdown)


def test_another_recipe_of_the_same_folder_finds_the_networks(once: tuple[Path, Outcome], spied: list[str]) -> None:
    folder, _ = once
    outcome = run_recipe(plan(folder, TINY.replace("fgsm(16)", "fgsm(8)"), name="other"))
    assert spied == ["measure"]
    assert outcome.measured == 1


def test_a_run_that_was_stopped_keeps_what_is_finished_and_ends_with_the_same_numbers(
    once: tuple[Path, Outcome], tmp_path: Path, spied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TINY.replace('["resnet18"]', '["resnet18", "0.3-Bottom"]')

    def stop(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    whole = module.measure

    def stop_at_the_second(cell: Any, *args: Any, **options: Any) -> Any:
        return stop() if spied.count("measure") > 1 else whole(cell, *args, **options)

    monkeypatch.setattr(module, "measure", _told(spied, stop_at_the_second, "measure"))
    with pytest.raises(KeyboardInterrupt):
        run_recipe(plan(tmp_path, text))
    assert spied.count("train") == 4
    spied.clear()
    monkeypatch.setattr(module, "measure", _told(spied, whole, "measure"))
    left = plan(tmp_path, text)
    assert (len(left.finished), len(left.missing), left.train) == (1, 1, ())
    outcome = run_recipe(left)
    assert spied.count("train") == 0
    # What it shares with a run that was left alone is the same to the last bit.
    known = {(number.row, number.column): number for number in once[1].numbers}
    shared = [number for number in outcome.numbers if (number.row, number.column) in known]
    assert len(shared) == len(known)
    assert all(number == known[number.row, number.column] for number in shared)


def test_training_that_was_stopped_keeps_the_finished_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_at_the_second(networks: TrainedNetworks, job: Any) -> None:
        if any(networks.folder.glob("*/last.safetensors")):
            raise OSError(28, "No space left on device")
        whole(networks, job)

    whole = TrainedNetworks.train
    monkeypatch.setattr(TrainedNetworks, "train", stop_at_the_second)
    with pytest.raises(OSError, match="No space left"):
        run_recipe(plan(tmp_path))
    assert len(plan(tmp_path).train) == 2


def test_several_seeds_give_a_mean_and_a_spread(tmp_path: Path) -> None:
    text = TINY.replace('only = ["ResNet-18 standard", "ResNet-18 0.3-Bottom"]', 'only = ["ResNet-18 standard"]')
    outcome = run_recipe(plan(tmp_path, text, seeds=(0, 1)))
    (clean,) = (number for number in outcome.numbers if number.column == "clean")
    assert clean.seeds == 2
    assert clean.spread is not None
    assert "±" in outcome.markdown


def test_a_damaged_cell_is_measured_again(once: tuple[Path, Outcome], caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = once
    before = plan(folder)
    (cell,) = before.cells
    path = folder / "out" / "store" / "units"
    damaged = {file: file.read_text() for file in path.glob("*.json") if '"scale"' in file.read_text()}
    for file, text in damaged.items():
        file.write_text(text[:-20])
    try:
        assert len(plan(folder).missing) == 1
        assert "measured again" in caplog.text
    finally:
        for file, text in damaged.items():
            file.write_text(text)
    assert json.loads(next(iter(damaged.values())))["key"]["seed"] == cell.seed


def test_the_expected_time_counts_what_is_missing(tmp_path: Path) -> None:
    expected = plan(tmp_path).expect()
    assert 0 < expected.training.likely < 600
    assert 0 < expected.measuring.likely < 600
    assert "training" in str(expected)


def test_unusable_seeds_and_folders_are_named_errors(tmp_path: Path) -> None:
    spec = load_recipe(write_recipe(tmp_path))
    with pytest.raises(SpecError, match="seeds"):
        plan_recipe(spec, "smoke", out=tmp_path / "out", seeds=(0, 0))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="folder"):
        plan_recipe(spec, "smoke", out=tmp_path / "file")


def test_a_larger_scale_without_its_data_shows_the_layout(tmp_path: Path) -> None:
    spec = load_recipe(write_recipe(tmp_path))
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        plan_recipe(spec, "small", out=tmp_path / "out")
    with pytest.raises(DataError, match="ROOT/train/<class>"):
        plan_recipe(spec, "small", out=tmp_path / "out", data=tmp_path)


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_goes_on_and_ends_with_the_same_numbers(
    once: tuple[Path, Outcome], tmp_path: Path
) -> None:
    path = write_recipe(tmp_path)
    command = [sys.executable, "-m", "dcn_plugin.cli", "recipe", "run", str(path), "--out", str(tmp_path / "out")]
    networks = tmp_path / "out" / "networks"
    for trained in (1, 2):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            while len(list(networks.glob("*/last.safetensors"))) < trained and process.poll() is None:
                time.sleep(0.01)
            process.kill()
    assert 1 <= len(plan(tmp_path).train) <= 2
    outcome = run_recipe(plan(tmp_path))
    assert [(n.row, n.column, n.ours) for n in outcome.numbers] == [(n.row, n.column, n.ours) for n in once[1].numbers]


def test_images_of_another_number_of_classes_are_a_named_error(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write_folder(tmp_path / "data" / part, {"cat": 3, "dog": 3}, height=32, width=32)
    small = load_recipe(write_recipe(tmp_path, TINY.replace("[smoke]", "[small]\nwidth = 8\nepochs = 1\n[smoke]")))
    with pytest.raises(SpecError, match="10 classes, the data have 2"):
        run_recipe(plan_recipe(small, "small", data=tmp_path / "data", out=tmp_path / "out"))
