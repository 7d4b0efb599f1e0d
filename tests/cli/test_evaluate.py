from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dcn_plugin import cli
from dcn_plugin.cli.attacks import open_attacks
from dcn_plugin.cli.processes import open_accelerator
from dcn_plugin.evaluate import ResultFile
from dcn_plugin.evaluate.protocols import PROTOCOLS

LINEAR = "tests.cli.factory:linear"
DEFECTIVE = "tests.cli.factory:defective"
TARGETS = ["--target", f"a={LINEAR}", "--target", f"b={LINEAR},seed=1"]
DATA = ["--data", "digits", "--size", "8", "--limit", "40", "--batch-size", "16", "--no-progress"]

# protocol -> what it needs besides, how many records it gives
CASES: dict[str, tuple[list[str], int]] = {
    "transfer": (["--source", f"s={LINEAR},seed=2", "--attack", "pgd,eps=0.1,steps=2", "--rounding", "8bit"], 2),
    "tapm": (["--source", f"s={LINEAR},seed=2", "--attack", "fgsm,eps=0.1", "--attack", "pgd,eps=0.1,steps=2"], 2),
    "whitebox": (["--attack", "pgd,eps=0.1,steps=2"], 2),
    "autoattack": (["--eps", "0.9", "--attack-batch", "16"], 2),
    "boundary": (["--options", "max_queries=40", "--count", "5"], 2),
    "hopskipjump": (["--options", "max_queries=60", "--count", "5"], 2),
    "cw": (["--options", "steps=5,bisections=1", "--count", "5"], 2),
    "gaussian": (["--level", "16/255", "--level", "0.2", "--noise", "clipped"], 4),
    "shuffle": (["-k", "2", "-k", "4", "--confidence", "0"], 4),
    "amplitude": ([], 2),
    "sanity": (["--eps", "0.1", "--steps", "3"], 12),
}


def evaluate(protocol: str, out: Path, *more: str) -> int:
    own, _ = CASES[protocol]
    return cli.main(["evaluate", protocol, *TARGETS, *DATA, *own, "--out", str(out), *more])


@pytest.mark.parametrize("protocol", CASES)
def test_every_protocol_prints_tables_and_writes_records_and_a_page(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(protocol, tmp_path) == 0
    printed = capsys.readouterr()
    results = ResultFile.read(tmp_path / "results.json").results
    assert len(results) == CASES[protocol][1]
    assert {result.target for result in results} == {"a", "b"}
    assert "a: takes images in [0, 1] as they are" in printed.err
    assert "report.html" in printed.out
    page = (tmp_path / "report.html").read_text()
    assert "<table" in page
    assert {"tables.md", "tables.tex", "records.csv"} <= {path.name for path in tmp_path.iterdir()}


def test_a_second_call_measures_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def content() -> Any:
        return json.loads((tmp_path / "results.json").read_text())["results"]

    evaluate("transfer", tmp_path)
    first = content()
    capsys.readouterr()
    evaluate("transfer", tmp_path)
    assert content() == first
    assert "2 finished measurements were reused" in capsys.readouterr().err
    evaluate("transfer", tmp_path, "--fresh")
    assert content() == first
    assert "reused" not in capsys.readouterr().err


def test_a_process_that_accelerate_launched_gives_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = pytest.importorskip("accelerate.state")
    evaluate("transfer", tmp_path / "alone")
    devices: list[str] = []

    def watch(device: str) -> Any:
        accelerator = open_accelerator(device)
        devices.append(accelerator.device.type)
        return accelerator

    monkeypatch.setattr("dcn_plugin.cli.evaluate.open_accelerator", watch)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    try:
        assert evaluate("transfer", tmp_path / "launched") == 0
    finally:
        state.AcceleratorState._reset_state(reset_partial_state=True)
    assert devices == ["cpu"]
    results = [ResultFile.read(tmp_path / name / "results.json").results for name in ("alone", "launched")]
    assert results[0] == results[1]


def test_protocols_join_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for protocol in ("transfer", "gaussian"):
        evaluate(protocol, tmp_path)
    assert {r.protocol for r in ResultFile.read(tmp_path / "results.json").results} == {"transfer", "gaussian"}
    capsys.readouterr()
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "report"), "--baseline", "a"]) == 0
    printed = capsys.readouterr().out
    assert "Transfer attacks" in printed
    assert "Gaussian noise" in printed
    assert (tmp_path / "report" / "report.html").exists()


def test_an_ensemble_of_sources_is_written_with_a_plus(tmp_path: Path) -> None:
    sources = ["--source", f"s={LINEAR},seed=2", "--source", f"t={LINEAR},seed=3", "--source", "s+t"]
    arguments = [*TARGETS, *DATA, *sources, "--attack", "fgsm,eps=0.1", "--out", str(tmp_path)]
    assert cli.main(["evaluate", "transfer", *arguments]) == 0
    results = ResultFile.read(tmp_path / "results.json").results
    assert list(dict.fromkeys(result.source for result in results)) == ["s", "t", "s+t"]


def records(out: Path) -> list[Any]:
    return [result.to_dict() for result in ResultFile.read(out / "results.json").results]


def without_machine(found: list[Any]) -> list[Any]:
    return [{key: value for key, value in record.items() if key != "hardware"} for record in found]


@pytest.mark.parametrize(
    "protocol", ["transfer", *(pytest.param(name, marks=pytest.mark.slow) for name in ("whitebox", "tapm", "gaussian"))]
)
def test_compact_models_give_the_same_counts_and_are_told_from_plain_ones(
    protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [word for word in CASES[protocol][0] if not word.startswith(("--source", "s="))]
    if protocol in ("transfer", "tapm"):
        own += ["--source", f"s={DEFECTIVE},seed=2"]
    arguments = ["--target", f"d={DEFECTIVE}", "--target", f"plain={LINEAR}", *DATA, *own, "--out", str(tmp_path)]

    def run(*more: str) -> tuple[list[Any], str]:
        capsys.readouterr()
        assert cli.main(["evaluate", protocol, *arguments, *more]) == 0
        return records(tmp_path), capsys.readouterr().err

    compact, said = run("--compact")
    assert "d: compact, backend " in said
    assert "plain: not defective, stays as it is" in said
    for record in compact:
        assert ("engine" in record["hardware"]) == (record["target"] == "d")
        assert ("source_engine" in record["hardware"]) == (protocol == "transfer")
    again, said = run("--compact")
    assert again == compact
    assert "finished measurements were reused" in said
    plain, _ = run()
    assert all(record["hardware"].keys().isdisjoint({"engine", "source_engine"}) for record in plain)
    assert without_machine(plain) == without_machine(compact)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "resnet81", "--data", "digits"], "This is no model"),
        (["--target", LINEAR, "--data", "nothing"], "nothing"),
        (["--target", LINEAR, "--data", "folder:/nowhere"], "nowhere"),
        (["--target", LINEAR, "--data", "digits", "--attack", "pdg"], "There is no attack of this name"),
        (["--target", f"a={LINEAR}", "--target", f"a={LINEAR}", "--data", "digits"], "Two targets"),
        (["--target", f"a={LINEAR}", "--data", "digits", "--baseline", "b"], "baseline"),
        (["--target", LINEAR, "--data", "digits", "--device", "cuda:99"], "device"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["evaluate", "whitebox", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_sigma_is_the_level_of_plain_noise(tmp_path: Path) -> None:
    for option in ("--level", "--sigma"):
        out = tmp_path / option
        arguments = [*TARGETS, *DATA, option, "16/255", option, "0.2", "--out", str(out)]
        assert cli.main(["evaluate", "gaussian", *arguments]) == 0
    assert records(tmp_path / "--level") == records(tmp_path / "--sigma")
    assert [record["eps"] for record in records(tmp_path / "--sigma")] == [16 / 255, 16 / 255, 0.2, 0.2]


def test_sigma_of_clipped_noise_is_refused_with_the_level_that_it_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*TARGETS, *DATA, "--sigma", "0.1", "--noise", "clipped", "--out", str(tmp_path)]
    assert cli.main(["evaluate", "gaussian", *arguments]) == 2
    assert "--level 0.2" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["transfer", "tapm", "whitebox"])
def test_the_attacks_of_a_protocol_that_names_none_are_those_of_its_help_at_8_255(protocol: str) -> None:
    attacks = open_attacks(PROTOCOLS[protocol].attacks or ())
    assert attacks and all(attack.eps == 8 / 255 for attack in attacks)


def test_a_target_without_a_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "amplitude", "--target", f"={LINEAR}", *DATA, "--out", str(tmp_path)]) == 2
    assert "has no name" in capsys.readouterr().err


def test_a_report_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "There are no results" in capsys.readouterr().err


def test_a_source_of_ones_own_says_what_a_targets_answers_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = ["--source", "asked=tests.cli.factory:asked,seed=3", "--source", f"plain={LINEAR},seed=2"]
    attack = ["--attack", "fgsm,eps=0.1", "--out", str(tmp_path)]
    assert cli.main(["evaluate", "transfer", *TARGETS[:2], *DATA, *sources, "--source", "asked+plain", *attack]) == 0
    results = ResultFile.read(tmp_path / "results.json").results
    asked = {result.source: result.figures.get("target_queries") for result in results}
    assert asked == {"asked": 30, "plain": None, "asked+plain": 30}
    assert "target queries" in capsys.readouterr().out
