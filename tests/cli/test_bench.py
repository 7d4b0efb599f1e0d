from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_plugin import cli
from dcn_plugin.engine import sweep

NET = "net=defective_resnet18_cifar,width=4"
FAST = ["--rounds", "2", "--size", "16", "--no-progress"]


def bench(out: Path, *more: str) -> int:
    return cli.main(["bench", "engine", "--out", str(out), *FAST, *more])


def test_the_benchmark_prints_a_table_and_writes_record_table_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    sizes = ["--p", "0.1", "0.5", "--batch", "2", "--backend", "reference"]
    assert bench(tmp_path, "--model", NET, *sizes) == 0
    assert torch.equal(torch.get_rng_state(), before)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Speed of compact models" in printed.out
    assert {path.name for path in tmp_path.iterdir()} == {"engine.json", "engine.md", "engine.png"}
    assert (tmp_path / "engine.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / "engine.json").read_text())
    assert [(one["network"], one["p"], one["batch_size"]) for one in record["results"]] == [
        ("net", 0.1, 2),
        ("net", 0.5, 2),
    ]
    assert record["settings"]["model"] == [NET]
    assert {"torch", "timm"} <= set(record["versions"])
    assert record["hardware"]["device"] == "cpu"
    assert str(tmp_path) not in json.dumps(record)
    for result in record["results"]:
        assert result["backend"] == "reference"
        assert result["relative_error"] < 1e-4
        assert result["speedup"] > 0
    # The fewer neurons, the more could be gained.
    assert record["results"][0]["ideal"] > record["results"][1]["ideal"]


def test_what_is_measured_is_on_disk_when_the_run_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = sweep.sweep_speed

    def interrupted(*args: Any, **options: Any) -> Iterator[sweep.SpeedPoint]:
        yield next(iter(honest(*args, **options)))
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "sweep_speed", interrupted)
    assert bench(tmp_path, "--model", NET, "--p", "0.5", "--batch", "1", "2", "--backend", "reference") == 130
    assert len(json.loads((tmp_path / "engine.json").read_text())["results"]) == 1
    assert "interrupted" in capsys.readouterr().err


def test_a_network_that_does_not_exist_is_one_line_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path, "--model", "defective_resnet81") == 2
    assert "did you mean" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["bench"],
        ["bench", "engine", "--out", "x"],
        ["bench", "engine", "--out", "x", "--model", NET, "--p", "0"],
        ["bench", "engine", "--out", "x", "--model", NET, "--p", "nan"],
        ["bench", "engine", "--out", "x", "--model", NET, "--batch", "0"],
        ["bench", "engine", "--out", "x", "--model", NET, "--rounds", "1"],
        ["bench", "engine", "--out", "x", "--model", NET, "--backend", "cuda"],
    ],
    ids=" ".join,
)
def test_arguments_that_make_no_sense_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert "usage: defective bench" in capsys.readouterr().err
