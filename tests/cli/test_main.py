from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dcn_plugin import cli
from dcn_plugin.errors import MissingExtraError
from dcn_plugin.experiments import DemoSpec, demo
from dcn_plugin.training import TrainConfig

TINY = DemoSpec(
    size=8,
    width=4,
    layers=(1, 1, 1, 1),
    keep=(0.5,),
    training=TrainConfig(epochs=1, batch_size=64),
    eps=(0.2,),
    steps=2,
    sigmas=(0.3,),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DemoSpec", lambda: TINY)


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("dcn-plugin ")


@pytest.mark.usefixtures("tiny")
def test_the_demo_prints_tables_and_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["demo", "--out", str(out), "--seeds", "2", "--seed", "5", "--no-progress"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for expected in (
        "Clean accuracy",
        "Transfer attacks",
        "Gaussian noise",
        "defective p=0.5",
        "seeds 5, 6",
        "report.html",
    ):
        assert expected in printed.out
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        "report.html",
        "tables.md",
        "tables.tex",
        "records.csv",
        "transfer_accuracy.png",
        "transfer_defense.png",
        "gaussian.png",
        "examples.png",
        "seeds",
    }
    assert {result["seed"] for result in json.loads((out / "results.json").read_text())["results"]} == {5, 6}

    assert cli.main(["demo", "--out", str(out), "--seeds", "2", "--seed", "5", "--no-progress"]) == 0
    assert "Reused finished results of seed 5, 6" in capsys.readouterr().out


def test_an_error_is_one_line_on_stderr_and_exit_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("defective: Results go into a folder. Got: ")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (MissingExtraError("No.", fix="do"), 2, "defective: No. Fix: do."),
        (OSError(28, "No space left on device", "results.json"), 2, "No space left on device: results.json"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_goes_wrong_inside_becomes_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: BaseException, status: int, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("dcn_plugin.experiments.run_demo", fail)
    assert cli.main(["demo"]) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nothing"],
        ["demo", "--seeds", "0"],
        ["demo", "--seed", "-1"],
        ["demo", "--seeds", "x"],
        ["demo", "--sed", "1", "2"],
    ],
    ids=" ".join,
)
def test_arguments_that_make_no_sense_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert "usage: defective" in capsys.readouterr().err


def test_summary_suggests_the_nearest_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", "resnet81"]) == 2
    assert "did you mean resnet18" in capsys.readouterr().err


def test_summary_of_a_plain_model_says_that_it_carries_no_masks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", "test_resnet"]) == 2
    assert "carries no defect masks" in capsys.readouterr().err
