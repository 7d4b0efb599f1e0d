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


def test_a_network_computes_the_same_in_torch_and_as_a_file_in_onnxruntime(tmp_path: Path) -> None:
    net = dcn.for_export(mobile())
    form = bench.Form(net, bench.write(net, tmp_path / "net.onnx", SIZE[1]))
    images = net.example_images()
    for run in (bench.in_onnxruntime, bench.in_torch):
        outputs = run(form, images.numpy())()
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


@pytest.mark.parametrize("folder", [bench.HERE, bench.HERE / "avx2"], ids=["AVX-512", "AVX2"])
def test_the_committed_page_is_that_of_the_record_and_its_ratios_those_of_its_times(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    assert (folder / "README.md").read_text() == bench.page(record)
    parts = {(part["network"], part["runtime"]) for part in record["results"]}
    runtimes = {runtime for _, runtime in parts}
    assert {"onnxruntime", "openvino"} <= runtimes <= bench.RUNTIMES.keys()
    assert parts == {(network, runtime) for network in bench.NETWORKS for runtime in runtimes}
    for part in record["results"]:
        for form, ratio in part["ratios"].items():
            assert np.isclose(ratio, part["ms"][form] / part["ms"]["plain"])
