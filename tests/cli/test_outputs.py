"""A command whose output folder takes no files says so before it opens anything."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

import dcn_plugin.cli
from dcn_plugin.cli.models import open_model
from dcn_plugin.errors import OutputError
from dcn_plugin.evaluate import RunDirectory
from dcn_plugin.report import Report, write_report
from dcn_plugin.training import TrainConfig, train
from tests.toy_records import noise_record
from tests.toys import image_set

NET = "tests.cli.factory:linear"
COMMANDS = {
    "train": ["train", NET, "--data", "digits"],
    "train, public": [*["train", NET, "--data", "digits", "--baseline", "pubdef"], *["--public", f"a={NET}"]],
    "evaluate": ["evaluate", "gaussian", "--data", "digits", "--target", f"a={NET}"],
    "recipe": ["recipe", "run", "table01"],
    "report": ["report", "."],
    "bench": ["bench", "engine", "--model", f"a={NET}"],
    "demo": ["demo"],
    "demo, pretrained": ["demo", "--pretrained"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_folder_is_tried_before_the_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: object, **__: object) -> NoReturn:
        raise AssertionError("the work has begun")

    for name in ("dcn_plugin.data.open_images", "dcn_plugin.cli.models.open_model", "dcn_plugin.report.load_run"):
        monkeypatch.setattr(name, work)
    for name in ("load_digits", "shipped_networks"):
        monkeypatch.setattr(f"dcn_plugin.experiments.demo.{name}", work)
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert dcn_plugin.cli.main([*COMMANDS[command], "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert f"{out} cannot be written: Not a directory. Got: " in said or f"{out}/" in said
    assert "Fix: name another folder" in said


def test_functions_try_it_too(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    with pytest.raises(OutputError):
        RunDirectory(out)
    with pytest.raises(OutputError):
        train(open_model(NET), image_set(8), TrainConfig(epochs=1, batch_size=4), out=out)
    with pytest.raises(OutputError):
        write_report(Report(title="x", results=[noise_record()]), out)
