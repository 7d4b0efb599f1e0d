"""Where no terminal shows a bar, every finished part is one line, and nothing moves the cursor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dcn_plugin import cli
from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet
from dcn_plugin.evaluate import Team, gaussian, progress_bar, sanity, tapm, transfer, whitebox
from dcn_plugin.experiments import run_demo
from dcn_plugin.support.processes import ALONE
from dcn_plugin.support.progress import log_line
from dcn_plugin.training import TrainConfig, train
from tests.cli.test_main import TINY
from tests.toys import ModeNet, image_set, linear_model

NETS = {"a": ModeNet().eval(), "b": ModeNet().eval()}
DATA = image_set(6)


def test_a_log_gets_a_line_a_finished_cell(capsys: pytest.CaptureFixture[str]) -> None:
    attacks = [PGD(0.1, steps=1)]
    list(transfer(NETS, NETS, attacks, DATA, training_seed=0, progress=True))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("transfer 1/2: PGD on a, ")
    assert second.startswith("transfer 2/2: PGD on b, ")
    assert second.endswith(" s")
    for results, count in (
        (tapm(NETS, NETS, attacks, DATA, training_seed=0, progress=True), 2),
        (whitebox(NETS, attacks, DATA, training_seed=0, progress=True), 2),
        (gaussian(NETS, DATA, [0.1, 0.2, 0.3], training_seed=0, progress=True), 3),
        (sanity(NETS["a"], DATA, eps=0.1, steps=2, queries=0, progress=True), 6),
    ):
        list(results)
        assert len(capsys.readouterr().err.splitlines()) == count


def test_without_progress_and_on_other_processes_nothing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    list(gaussian(NETS, DATA, [0.1], training_seed=0))
    for team, show in ((ALONE, False), (Team(rank=1, size=2), True)):
        with progress_bar(3, "work", show=show, team=team) as bar:
            bar.update(3)
            bar.cell("a cell", 1, 1)
    assert capsys.readouterr().err == ""


def test_a_terminal_has_its_bar_and_no_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(2, "work", show=True) as bar:
        bar.update(1)
        bar.cell("a cell", 1, 2)
    said = capsys.readouterr().err
    assert "a cell" not in said
    assert "work:" in said


def test_a_bar_is_moved_on_to_the_end_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress_bar(10, "work", show=True) as bar:
        bar.update(2)
        bar.reach(5)
        assert bar.n == 5
        bar.reach(5)
        assert bar.n == 5
        bar.reach(7.5)
        assert bar.n == 7.5


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    told = capsys.readouterr().err
    assert "\r" not in told and "\x1b" not in told
    return told.splitlines()


def pictures(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    return ImageSet(torch.rand(count, 1, 4, 4, generator=generator), torch.arange(count) % 2, 2, "random")


def test_a_line_is_written_where_no_terminal_shows_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log_line("one")
    log_line("two", show=False)
    assert lines(capsys) == ["one"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log_line("three")
    assert lines(capsys) == []


@pytest.mark.parametrize("progress", [True, False])
def test_training_tells_every_epoch(progress: bool, capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig(epochs=3, batch_size=4)
    history = train(linear_model(16, 2), pictures(8), config, val=pictures(4), progress=progress, name="net").history
    told = lines(capsys)
    assert len(told) == (3 if progress else 0)
    for line, record in zip(told, history.epochs, strict=False):
        assert line.startswith(f"net epoch {record.epoch + 1} of 3: loss {record.loss:.4f}, train ")
        assert f"val {record.val_accuracy:.2%}, " in line and line.endswith(" s")


def test_a_run_that_goes_on_tells_the_epochs_that_it_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Stopped(Exception):
        pass

    def stop(model: object, batch: object, generator: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise Stopped
        return batch

    steps, config = 0, TrainConfig(epochs=3, batch_size=4)
    with pytest.raises(Stopped):
        train(linear_model(16, 2), pictures(8), config, out=tmp_path, step_images=stop, progress=True)  # type: ignore[arg-type]
    assert len(lines(capsys)) == 1
    train(linear_model(16, 2), pictures(8), config, out=tmp_path, step_images=stop, progress=True)  # type: ignore[arg-type]
    assert [line.partition(":")[0] for line in lines(capsys)] == ["epoch 2 of 3", "epoch 3 of 3"]


def test_the_demo_tells_every_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path, seeds=[0], spec=TINY, progress=True)
    run_demo(tmp_path, seeds=[0, 3], spec=TINY, progress=True)
    first, again, last = lines(capsys)
    assert first.startswith("seed 0, 1 of 1: finished in ")
    assert again == "seed 0, 1 of 2: was finished before, its results are reused"
    assert last.startswith("seed 3, 2 of 2: finished in ")


def test_the_command_tells_its_epochs_unless_it_is_told_not_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", "tests.cli.factory:linear", "--data", "digits", "--size", "8", "--limit", "80", "--epochs", "2"]
    assert cli.main([*line, "--batch-size", "16", "--out", str(tmp_path / "a")]) == 0
    assert sum("epoch" in told for told in lines(capsys)) == 2
    assert cli.main([*line, "--batch-size", "16", "--out", str(tmp_path / "b"), "--no-progress"]) == 0
    assert not any("epoch" in told for told in lines(capsys))
