"""The benchmark of exports: what it times, and that its page is that of its record."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import dcn_plugin as dcn
from recipes.bench_export import bench
from tests.engine.export.nets import SIZE, mobile


def test_a_file_computes_in_onnxruntime_what_was_written(tmp_path: Path) -> None:
    net = dcn.for_export(mobile())
    file = bench.write(net, tmp_path / "net.onnx", SIZE[1])
    images = net.example_images()
    outputs = bench.in_onnxruntime(file, images.numpy())()
    torch.testing.assert_close(torch.from_numpy(outputs), net(images), rtol=0, atol=1e-4)


def test_a_race_gives_each_the_median_of_its_runs_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lengths = [0.0], {"plain": itertools.cycle([9.0, 1.0, 2.0, 6.0]), "masked": itertools.cycle([9.0, 5.0])}

    def run(name: str) -> bench.Run:
        def call() -> None:
            clock[0] += next(lengths[name])

        return call

    monkeypatch.setattr(bench, "time", SimpleNamespace(process_time=lambda: clock[0]))
    runs = {name: run(name) for name in lengths}
    # The first call of a turn does not count.
    assert bench.race(runs, bench.Options(turns=3, runs=3)) == {"plain": 2000.0, "masked": 5000.0}
    assert bench.race(runs, bench.Options(turns=2, runs=1)) == {"plain": 3500.0, "masked": 5000.0}


def test_the_committed_page_is_that_of_the_record_and_its_ratios_those_of_its_times() -> None:
    record = json.loads((bench.HERE / "record.json").read_text())
    assert (bench.HERE / "README.md").read_text() == bench.page(record)
    assert {(part["network"], part["runtime"]) for part in record["results"]} == {
        (network, runtime) for network in bench.AT_MOST for runtime in bench.RUNTIMES
    }
    for part in record["results"]:
        for form, ratio in part["ratios"].items():
            assert np.isclose(ratio, part["ms"][form] / part["ms"]["plain"])
