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


def test_a_folder_of_the_machine_reaches_the_measurement_and_not_the_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Path] = []

    def measure(options: Options, command: str, *, data: Path) -> dict[str, Any]:
        seen.append(data)
        return benchmark.head(options, command)

    given = ["--out", str(tmp_path / "out"), "--data", str(tmp_path / "images")]
    monkeypatch.setattr("sys.argv", ["program", *given])
    benchmark.main(
        tmp_path / "name",
        "about",
        options=Options(),
        quick=Options(),
        settable=(),
        roots=("data",),
        measure=measure,
        page=lambda told: "page",
    )
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert seen == [tmp_path / "images"] and record["command"].endswith("--data ROOT")


def test_a_part_that_was_measured_is_kept_and_not_measured_again(tmp_path: Path) -> None:
    measured: list[str] = []

    def take(name: str) -> dict[str, object]:
        measured.append(name)
        return {"quartiles": (1, 2), "speedup": 1.5}

    first = benchmark.Parts(tmp_path / "parts", {"width": 8})
    figures = first("layer-0.3", lambda: take("layer"))
    assert figures == {"quartiles": [1, 2], "speedup": 1.5}
    again = benchmark.Parts(tmp_path / "parts", {"width": 8})
    assert again("layer-0.3", lambda: take("layer")) == figures
    assert again.seconds == first.seconds > 0
    assert measured == ["layer"]
    again("layer-0.1", lambda: take("other part"))
    benchmark.Parts(tmp_path / "parts", {"width": 16})("layer-0.3", lambda: take("other options"))
    assert measured == ["layer", "other part", "other options"]


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    parts = benchmark.Parts(None, {})
    assert [parts("it", lambda: 1), parts("it", lambda: 2)] == [1, 2]


def test_a_part_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    parts = benchmark.Parts(tmp_path, {})

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts("it", fail)
    assert not list(tmp_path.iterdir()) and parts("it", lambda: 3) == 3
