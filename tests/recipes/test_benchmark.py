"""The command line of benchmarks: what it writes, and where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipes import benchmark


@dataclass(frozen=True)
class Options:
    seed: int = 0
    images: int = 8


def call(monkeypatch: pytest.MonkeyPatch, here: Path, *given: str, **settings: Any) -> None:
    monkeypatch.setattr("sys.argv", ["program", *given])
    benchmark.main(
        here,
        "about",
        options=Options(),
        quick=Options(images=1),
        settable=("images",),
        measure=lambda options, command: benchmark.head(options, command, packages=("torch",)),
        page=lambda told: json.dumps(told),
        **settings,
    )


def test_the_record_says_what_made_it_and_the_page_is_made_from_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call(monkeypatch, tmp_path / "name", "--images", "3")
    record = json.loads((tmp_path / "name" / "record.json").read_text())
    assert record["command"] == "python -m recipes.name.bench --images 3"
    assert record["options"] == {"seed": 0, "images": 3}
    assert record["versions"]["torch"] and record["hardware"]["cores"]
    assert json.loads((tmp_path / "name" / "README.md").read_text()) == record


def test_a_page_tells_about_two_records_if_both_are_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    call(monkeypatch, tmp_path, script="distances", beside="record")
    page = tmp_path / "README.md"
    assert list(json.loads(page.read_text())) == ["distances"]
    call(monkeypatch, tmp_path, beside="distances")
    told = json.loads(page.read_text())
    assert list(told) == ["record", "distances"]
    assert told["distances"]["command"] == f"python -m recipes.{tmp_path.name}.distances"


def test_a_smoke_test_does_not_replace_the_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(monkeypatch, tmp_path, "--quick")
    assert "--quick needs --out" in capsys.readouterr().err
    call(monkeypatch, tmp_path, "--quick", "--out", str(tmp_path / "elsewhere"))
    assert json.loads((tmp_path / "elsewhere" / "record.json").read_text())["options"]["images"] == 1
    assert not (tmp_path / "record.json").exists()
