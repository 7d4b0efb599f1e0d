from __future__ import annotations

import json
from pathlib import Path

import pytest

from dcn_plugin import cli
from dcn_plugin.experiments import demo
from tests.experiments.test_demo import QUICK


def test_the_pretrained_demo_prints_its_tables_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DemoSpec", lambda: QUICK)
    monkeypatch.delattr(demo, "train_network")
    out = tmp_path / "out"
    assert cli.main(["demo", "--pretrained", "--out", str(out), "--no-progress"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    for expected in ("Clean accuracy", "Transfer attacks", "Gaussian noise", "defective p=0.3", "report.html"):
        assert expected in printed.out
    assert {"results.json", "report.html"} <= {path.name for path in out.iterdir()}
    assert "Not trained in this run" in (out / "report.html").read_text()
    results = json.loads((out / "results.json").read_text())["results"]
    assert {result["target"] for result in results} == {"standard", "defective p=0.3"}


@pytest.mark.parametrize("asked", [["--seeds", "2"], ["--seed", "1"]], ids=" ".join)
def test_other_seeds_of_pretrained_networks_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    assert cli.main(["demo", "--pretrained", "--out", str(tmp_path / "out"), *asked]) == 2
    assert "trained with one seed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("asked", "seeds"),
    [
        ([], [0, 1, 2]),
        (["--seed", "4"], [4, 5, 6]),
        (["--seeds", "2"], [0, 1]),
        (["--pretrained"], None),
        (["--pretrained", "--seed", "0"], [0]),
        (["--pretrained", "--seeds", "1"], [0]),
    ],
    ids=str,
)
def test_seeds_follow_from_what_was_asked(
    monkeypatch: pytest.MonkeyPatch, asked: list[str], seeds: list[int] | None
) -> None:
    class Seen(Exception):
        pass

    def look(_: str, **options: object) -> None:
        given = options["seeds"]
        assert (given if given is None else list(given)) == seeds  # type: ignore[call-overload]
        raise Seen

    monkeypatch.setattr("dcn_plugin.experiments.run_demo", look)
    with pytest.raises(Seen):
        cli.main(["demo", *asked])
