"""The recipe that fine-tunes trained networks: its smallest size end to end, and a page that follows its record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import dcn_plugin as dcn
from dcn_plugin.evaluate import Result, ResultFile
from dcn_plugin.experiments.datasets import open_data
from dcn_plugin.experiments.scales import scale_for
from recipes.fine_tuning import measure
from recipes.fine_tuning.measure import ARMS, Measurement, make
from recipes.fine_tuning.page import COLUMNS, difference, page

FEW = ("masks alone", "recalibrated", "gradual, a third", "gradual")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def smoke(work: Path) -> Measurement:
    scale = scale_for("smoke", "cifar10")
    return Measurement(scale, open_data("digits", None), work, 0.05, torch.device("cpu"), progress=False)


@pytest.fixture(scope="module")
def record(work: Path) -> ResultFile:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "ARMS", {name: ARMS[name] for name in FEW})
        return make(smoke(work), [0], "python -m recipes.fine_tuning.measure --scale smoke")


def test_every_row_is_measured_under_everything(record: ResultFile, tmp_path: Path) -> None:
    rows = ("standard", "from scratch", "from scratch, a third", *FEW)
    for row in rows:
        results = [result for result in record.results if result.target == row]
        assert len(results) == 2 * 2 + 3
        assert all(sum(map(wanted, results)) == 1 for wanted in COLUMNS.values())
    record.write(tmp_path / "record.json")
    assert ResultFile.read(tmp_path / "record.json") == record
    assert record.spec["epochs"]["recalibrated"] == 0 and record.spec["arms"]["gradual"]["gradual"] == {
        "gradual": "linear"
    }
    shown = page(record)
    schedule = record.spec["schedule"]
    assert 0 < schedule["step_s"] < schedule["training_step_s"]
    assert f"{schedule['step_s'] / schedule['training_step_s']:.2%} of a training step" in shown
    assert all(f"\n| {row} |" in shown for row in rows)


def test_fine_tuned_networks_start_from_the_standard_one_and_have_the_masks_of_the_one_from_scratch(
    record: ResultFile, work: Path
) -> None:
    measurement = smoke(work)
    standard, masked = measurement.job("Standard", 0), measurement.job("0.3-Bottom", 0)
    scratch = measurement.networks.open([masked])
    alone, tuned, recalibrated = (
        measurement.tuned(name, ARMS[name], standard, masked) for name in ("masks alone", "gradual", "recalibrated")
    )
    masks = {key: value for key, value in scratch.state_dict().items() if value.dtype == torch.bool}
    assert len(masks) == 10
    for net in (alone, tuned, recalibrated):
        assert all(torch.equal(net.state_dict()[key], value) for key, value in masks.items())
        assert dcn.defect_spec(net).mask_origin == "sampled"
    start = measurement.networks.open([standard]).state_dict()
    assert all(torch.equal(alone.state_dict()[key], value) for key, value in start.items())
    changed = {key for key, value in start.items() if not torch.equal(recalibrated.state_dict()[key], value)}
    assert changed == {key for key in start if "running_" in key or "num_batches" in key}
    assert not torch.equal(tuned.state_dict()["model.conv1.weight"], start["model.conv1.weight"])


def test_a_second_run_reuses_what_is_there(record: ResultFile, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ARMS", {name: ARMS[name] for name in FEW})
    again = smoke(work)
    results = list(again.results([0]))
    assert [dataclasses.replace(result, versions={}, hardware={}) for result in results] == [
        dataclasses.replace(result, versions={}, hardware={}) for result in record.results
    ]
    assert again.store.measured == 0


def test_a_seed_of_another_machine_joins_the_record(record: ResultFile) -> None:
    other = dataclasses.replace(
        record,
        spec={**record.spec, "seeds": [1], "hardware": {"processor": "abacus"}},
        results=tuple(dataclasses.replace(r, seed=1, hardware={"processor": "abacus"}) for r in record.results),
    )
    both = measure.joined(other, record)
    assert both.spec["seeds"] == [0, 1]
    assert both.results == (*record.results, *other.results)
    assert measure.joined(record, both).results == both.results  # measured anew: in the place of what was there
    assert f"{record.results[0].hardware['processor']}, abacus)" in page(both)


def test_a_seed_of_other_settings_is_refused_before_it_is_measured(
    record: ResultFile, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "ARMS", {name: ARMS[name] for name in FEW})
    assert measure.differing(smoke(work), record) == []
    record.write(tmp_path / "record.json")
    monkeypatch.setattr(measure, "make", lambda *_: pytest.fail("measured"))
    command = ["measure", "--scale", "smoke", "--out", str(tmp_path), "--work", str(work), "--only", "1", "--lr", "9"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        measure.main()
    assert "was made with another lr; name another folder with --out" in capsys.readouterr().err
    assert ResultFile.read(tmp_path / "record.json") == record


def invented(record: ResultFile, changes: dict[str, int]) -> ResultFile:
    """The record with other counts: of 100 counted images the row's share is defended, over two seeds."""
    results = []
    for seed in (0, 1):
        for result in record.results:
            defended = 50 + (changes.get(result.target, 0) if result.protocol == "transfer" else 0) + seed
            counts = {
                "n_total": 100,
                "n_counted": 100,
                "n_clean_correct": 100,
                "n_defended": defended,
                "n_correct": defended,
            }
            sources = {"n_source_correct": 100, "n_source_fooled": 100} if result.protocol == "transfer" else {}
            none = {"n_zero_gradient": None, "n_failed_starts": None}
            results.append(dataclasses.replace(result, seed=seed, **counts, **sources, **none))
    return dataclasses.replace(record, results=tuple(results))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gradual, a third": -9}, "attacked more easily under FGSM and PGD"),
        ({"gradual, a third": 9}, "withstands FGSM and PGD better"),
        ({}, "no difference is shown"),
    ],
)
def test_the_page_says_what_the_figures_say(record: ResultFile, changes: dict[str, int], says: str) -> None:
    other = invented(record, changes)
    wanted = changes.get("gradual, a third", 0) / 100
    assert difference(other, "gradual, a third", "PGD") == pytest.approx([wanted, wanted])
    line = next(line for line in page(other).splitlines() if line.startswith("Defence of *gradual, a third*"))
    assert says in line and f"PGD {100 * wanted:+.1f} points" in line


def test_the_goal_is_judged_by_the_mean_over_seeds(record: ResultFile) -> None:
    def clean(right: int) -> ResultFile:
        results: list[Result] = []
        for result in invented(record, {}).results:
            count = right if result.target == "gradual, a third" else 100
            more = {"n_clean_correct": count, "n_counted": min(count, 60), "n_defended": 50, "n_correct": 50}
            results.append(dataclasses.replace(result, **more))
        return dataclasses.replace(record, results=tuple(results))

    assert "It reaches the goal" in page(clean(99))
    assert "It does not reach the goal" in page(clean(98))
    assert "-2.0 points" in page(clean(98))
