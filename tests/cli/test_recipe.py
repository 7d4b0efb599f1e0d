from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcn_plugin import cli
from dcn_plugin.experiments import run as module
from dcn_plugin.experiments.network_store import TrainedNetworks
from tests.experiments.recipe_files import TINY, write_recipe


def test_the_list_names_every_recipe_what_it_reproduces_and_its_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "list"]) == 0
    printed = capsys.readouterr().out
    for expected in ("table05", "Table 5:", "figure04", "modern_transfer", "smoke (digits)", "full (mnist)", "ROOT/"):
        assert expected in printed


def test_a_folder_without_recipes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recipe", "list", "--recipes", str(tmp_path / "nowhere")]) == 2
    assert "holds no recipe" in capsys.readouterr().err


def test_a_recipe_runs_by_path_and_prints_time_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_recipe(tmp_path), tmp_path / "out"
    arguments = ["recipe", "run", str(path), "--out", str(out), "--no-progress"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "3 of 3 networks to train, 1 of 1 cells to measure" in printed.err
    assert "expected time on this machine: about" in printed.err
    assert "[1/3] training" not in printed.err
    assert "(78.23)" in printed.out
    record = json.loads((out / "tiny" / "smoke" / "record.json").read_text())
    assert record["run"]["command"] == "defective recipe run tiny --scale smoke"
    assert cli.main(arguments) == 0
    again = capsys.readouterr()
    assert "0 of 3 networks to train, 0 of 1 cells to measure" in again.err
    assert "expected time" not in again.err


def test_without_a_terminal_every_network_epoch_and_cell_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path)
    assert cli.main(["recipe", "run", str(path), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert "\r" not in told and "\x1b" not in told
    lines = told.splitlines()
    assert [line.partition("training ")[0] for line in lines if "] training " in line] == [
        f"defective: [{number}/3] " for number in (1, 2, 3)
    ]
    assert sum(" epoch 1 of 1: loss " in line for line in lines) == 3
    assert sum("[1/1] measuring " in line for line in lines) == 1


def test_a_dry_run_says_what_is_missing_and_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_recipe(tmp_path), tmp_path / "out"
    assert cli.main(["recipe", "run", str(path), "--out", str(out), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "train ResNet-18 Standard (source), seed 0" in printed.out
    assert "measure transfer of resnet18" in printed.out
    assert "expected time" in printed.err
    assert not out.exists()


def test_the_list_tells_what_a_committed_record_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_recipe(tmp_path), tmp_path / "out"
    cli.main(["recipe", "list", "--recipes", str(tmp_path)])
    assert "record: none" in capsys.readouterr().out
    cli.main(["recipe", "run", str(path), "--out", str(out), "--no-progress"])
    (out / "tiny" / "smoke" / "record.json").rename(path.with_name("record.json"))
    capsys.readouterr()
    assert cli.main(["recipe", "list", "--recipes", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "record: smoke, width 8, 1 epochs" in printed and "record of scale" not in printed
    path.with_name("medium").mkdir()
    path.with_name("record.json").rename(path.parent / "medium" / "record.json")
    assert cli.main(["recipe", "list", "--recipes", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "record: none" in printed and "record of scale medium: smoke, width 8" in printed
    path.with_name("record.json").write_text("{}")
    assert cli.main(["recipe", "list", "--recipes", str(tmp_path)]) == 0
    assert "cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tabel04"], "did you mean table04"),
        (["table04", "--scale", "smal"], "did you mean small"),
        (["table04", "--scale", "small"], "cifar-10-batches-py"),
        (["nowhere/recipe.toml"], "no such recipe file"),
    ],
)
def test_bad_input_is_one_line_that_says_what_to_do(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert cli.main(["recipe", "run", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_an_interrupt_keeps_finished_networks_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    path, out = write_recipe(tmp_path), tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(module, "measure", interrupted)
        assert cli.main(["recipe", "run", str(path), "--out", str(out)]) == 130
    assert "goes on from there" in capsys.readouterr().err
    monkeypatch.setattr(TrainedNetworks, "train", interrupted)
    assert cli.main(["recipe", "run", str(path), "--out", str(out)]) == 0


def test_no_room_on_the_disk_is_a_named_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "file")

    monkeypatch.setattr(module, "measure", full)
    path = write_recipe(tmp_path, TINY)
    assert cli.main(["recipe", "run", str(path), "--out", str(tmp_path / "out"), "--no-progress"]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_several_recipes_run_one_after_the_other_and_share_their_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_recipe(tmp_path), write_recipe(tmp_path, TINY.replace("fgsm(16)", "fgsm(8)"), name="other")]
    out = tmp_path / "out"
    arguments = ["recipe", "run", *map(str, paths), "--out", str(out)]
    assert cli.main([*arguments, "--dry-run"]) == 0
    planned = capsys.readouterr()
    assert planned.out.count("train ") == 3 and planned.out.count("measure ") == 2
    assert cli.main([*arguments, "--no-progress"]) == 0
    printed = capsys.readouterr()
    # Both are planned, and the time of both is told, before the first begins; the second trains nothing.
    head, _, rest = printed.err.partition("expected time on this machine: about")
    assert "tiny (Table 4)" in head and "other (Table 4)" in head and "expected time" not in rest
    assert len(list((out / "networks").iterdir())) == 3
    for name, trained in (("tiny", 3), ("other", 0)):
        record = json.loads((out / name / "smoke" / "record.json").read_text())
        assert record["run"]["networks_trained"] == trained
        assert record["run"]["command"] == f"defective recipe run {name} --scale smoke"


def test_of_several_recipes_a_wrong_one_is_named_before_the_first_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert cli.main(["recipe", "run", str(write_recipe(tmp_path)), "tabel04", "--out", str(out)]) == 2
    assert "did you mean table04" in capsys.readouterr().err
    assert not out.exists()


def test_the_verdict_is_printed_below_the_table_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_recipe(tmp_path), tmp_path / "out"
    assert cli.main(["recipe", "run", str(path), "--out", str(out), "--no-progress"]) == 0
    assert "Not compared: scale smoke shows that the recipe runs" in capsys.readouterr().out
    record = json.loads((out / "tiny" / "smoke" / "record.json").read_text())
    for number in record["spec"]["numbers"]:
        number |= {"scale": "small", "seeds": 1, "counted": 500, "ours": 90.0 if "0.3" in number["row"] else 10.0}
    path.with_name("record.json").write_text(json.dumps(record))
    assert cli.main(["recipe", "list", "--recipes", str(tmp_path)]) == 0
    assert "verdict: agrees (agrees 1)" in capsys.readouterr().out
