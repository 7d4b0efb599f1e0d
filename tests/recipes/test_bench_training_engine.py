"""The benchmark of the training engine: it compares equal computations, and it runs."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from recipes.bench_training_engine import bench

TINY = replace(bench.QUICK, threads=1)


def test_the_layer_has_the_gradient_of_the_dense_convolution() -> None:
    told = bench.layer(0.5, TINY, channels=16, size=6)
    assert told["relative_error"] < 1e-5 and told["ideal"] == pytest.approx(2, rel=0.3)


def test_a_step_changes_the_weights_of_its_network() -> None:
    model = bench.network(0.5, 16, seed=0)
    before = model.state_dict()["conv1.weight"].clone()
    bench.stepper(model, model, TINY)()
    assert not torch.equal(before, model.state_dict()["conv1.weight"])


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--quick", "--out", str(tmp_path), "--threads", "1"])
    bench.main()
    record = json.loads((tmp_path / "record.json").read_text())
    assert {line["what"] for line in record["limits"]} == {line.what for line in bench.figures(record)}
    assert "MiB on top of" in (tmp_path / "README.md").read_text()


def test_the_committed_record_was_made_by_these_options() -> None:
    path = bench.HERE / "record.json"
    if not path.exists():
        pytest.skip("no committed record")
    record = json.loads(path.read_text())
    assert record["options"].keys() == asdict(bench.Options()).keys()
    assert (bench.HERE / "README.md").read_text() == bench.markdown(record)
