"""What the targets install; ``make reproduce-small``: what it refuses, and that its commands run."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dcn_plugin import cli
from dcn_plugin.experiments.datasets import DATA

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # DATA of the environment would count as given.
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )


def commands(*arguments: str) -> list[list[str]]:
    """The calls of ``defective`` that make would run, without the name of the program."""
    shown = make("--dry-run", "reproduce-small", *arguments)
    assert shown.returncode == 0, shown.stderr
    lines = [shlex.split(line) for line in shown.stdout.splitlines() if line.startswith(".venv/bin/defective ")]
    return [line[1:] for line in lines]


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A folder that stands for .venv: its programs write down how they were called."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "defective"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n')
        program.chmod(0o755)
    return tmp_path


def calls(environment: Path, target: str) -> list[str]:
    """What making a target calls in the environment."""
    log = environment / "calls"
    log.unlink(missing_ok=True)
    done = make(target, f"VENV={environment}")
    assert done.returncode == 0, done.stderr
    return log.read_text().splitlines() if log.exists() else []


DEMO, ALL = (f"python -m pip install --editable .[{extra}]" for extra in ("demo", "all"))
RUN = "defective demo --out demo-out"


def test_the_demo_installs_what_it_needs_and_the_rest_comes_when_it_is_needed(environment: Path) -> None:
    assert calls(environment, "demo") == [DEMO, RUN]
    assert calls(environment, "demo") == [RUN]
    assert calls(environment, "install") == [ALL]
    assert calls(environment, "demo") == [RUN]
    assert calls(environment, "install") == []


def test_where_everything_is_installed_the_demo_installs_nothing(environment: Path) -> None:
    assert calls(environment, "install") == [ALL]
    assert calls(environment, "demo") == [RUN]


@pytest.mark.parametrize(("target", "packages"), [("demo", "what the demo needs"), ("install", "all extras")])
def test_it_says_what_it_installs_and_how_much_before_it_does(environment: Path, target: str, packages: str) -> None:
    said = make("--dry-run", target, f"VENV={environment}").stdout.partition("pip install")[0]
    assert packages in said and "packages" in said and "GB" in said
    assert make(target, f"VENV={environment}").stdout.count("Installing") == 1
    assert "Installing" not in make(target, f"VENV={environment}").stdout


def test_without_data_nothing_is_installed_and_the_layout_is_named() -> None:
    refused = make("reproduce-small", "VENV=/nonexistent")
    assert refused.returncode != 0
    assert "make reproduce-small DATA=ROOT" in refused.stderr
    for part in ("cifar-10-batches-py/", "train/<class>/*.png", "test/<class>/*.png"):
        assert part in refused.stderr and part in DATA["cifar10"].layout
    assert "venv" not in refused.stdout


def test_data_that_are_not_there_are_a_named_error_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = commands(f"DATA={tmp_path}/nowhere", f"OUT={tmp_path}/out")[0]
    assert run[run.index("--scale") + 1] == "small"
    assert cli.main(run) == 2
    assert "CIFAR-10 is not there" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_help_names_it() -> None:
    assert "make reproduce-small DATA=ROOT" in make("help").stdout


@pytest.mark.slow
def test_its_commands_make_both_records_with_a_report_each_and_run_again_find_all_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = commands("DATA=not-needed", f"OUT={tmp_path}/out", "SCALE=smoke", "ARGS=--no-progress")
    for line in lines:
        assert cli.main(line) == 0
    for name in ("table05", "figure04"):
        folder = tmp_path / "out" / name / "smoke"
        assert {"record.json", "table.md", "report.html"} <= {file.name for file in folder.iterdir()}
        record = json.loads((folder / "record.json").read_text())
        assert record["run"]["command"].startswith(f"defective recipe run {name} --scale smoke")
    capsys.readouterr()
    assert cli.main(lines[0]) == 0
    told = capsys.readouterr().err
    assert told.count("0 of ") == 4 and "expected time" not in told
