"""The benchmark of the engine: it measures the networks it says, and it runs."""

from __future__ import annotations

import argparse
import json
import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dcn_plugin.engine import compact
from dcn_plugin.engine.native import lanes, native_problem
from dcn_plugin.surgery import masks_of, undefectify
from recipes.bench_engine import batches, bench, cases, children

TINY = {"name": bench.SMALL, "p": 0.3, "batch": 2, "rounds": 2, "seed": 0, "threads": 1, "make": {"width": 4}}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return cases.network(bench.SMALL, p=0.3, seed=0, width=8)


def test_a_network_draws_nothing_from_the_global_generator_and_is_the_same_again(net: nn.Module) -> None:
    before = torch.get_rng_state()
    again = cases.network(bench.SMALL, p=0.3, seed=0, width=8)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


def test_the_signal_does_not_fade_on_its_way_through_a_network(net: nn.Module) -> None:
    with torch.no_grad():
        features = net.forward_features(cases.noise(4, 3, 32, 32, seed=1))  # type: ignore[operator]
    assert 0.1 < float(features.std()) < 10
    assert not any(module.training for module in net.modules())


def test_the_bottom_blocks_are_those_of_the_network_with_its_masks(net: nn.Module) -> None:
    bottom, images = cases.bottom_of(net), cases.noise(2, 3, 32, 32, seed=1)
    expected = net.layer2(net.layer1(net.act1(net.bn1(net.conv1(images)))))  # type: ignore[operator]
    torch.testing.assert_close(bottom(images), expected)
    assert masks_of(bottom).keys() == masks_of(net).keys()  # the paper masks the bottom alone
    assert not torch.allclose(undefectify(bottom)(images), expected)
    assert compact(bottom, backend="reference").plan.layers[-1].name == "layer2.1.conv2"


def test_the_layer_computes_the_masked_convolution_and_its_ideal_is_one_over_p_squared() -> None:
    found = cases.layer(0.5, batch=2, rounds=2, seed=0, channels=16, size=8)
    assert found["relative_error"] < 1e-5
    assert found["ideal"] == pytest.approx(4, rel=0.1)
    assert min(found["to_rows_ms"], found["to_images_ms"], found["speedup"], found["packed_bytes"]) > 0


def test_the_attack_sees_the_gradient_of_the_defective_model(net: nn.Module) -> None:
    found = cases.attack(net, batch=2, steps=1, rounds=2, seed=0)
    assert found["gradient_relative_error"] < 1e-4
    assert set(found["ms"]) == {"dense", "compact", "defective"}


def test_the_second_compaction_takes_what_the_first_kept_and_leaves_the_users_cache_alone(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCN_ENGINE_CACHE", str(tmp_path))
    found = cases.compaction_calls(net, batch=8, repeats=1)
    assert 0 < found["second_s"] < found["first_s"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "must", "largest", "holds"),
    [(2.0, 2.0, False, True), (1.9, 2.0, False, False), (1.9, 2.0, True, True), (2.0, 2.0, True, False)],
)
def test_a_limit_holds_or_is_missed(value: float, must: float, largest: bool, holds: bool) -> None:
    assert bench.Line("it", value, must, largest=largest).holds is holds


def test_the_peak_of_a_process_counts_from_its_reset_on() -> None:
    if not children.CLEAR.exists():
        pytest.skip("Linux only")

    def take(mib: int) -> None:
        # Pages of its own: a tensor might get memory that an earlier test has freed, which is resident already.
        with mmap.mmap(-1, mib * 2**20) as memory:
            memory.write(bytes([1]) * len(memory))

    _, large = children._peak(lambda: take(64))
    _, small = children._peak(lambda: take(1))
    assert large - small > 48


def test_a_child_that_takes_too_long_is_ended_and_says_so() -> None:
    found = children.peak_memory(TINY, limit_s=0.2)
    assert found == {side: {"reason": "it was not finished after 0 s"} for side in ("dense", "compact")}


@pytest.mark.slow
def test_a_child_that_fails_says_why() -> None:
    found = children._child("memory", "dense", {**TINY, "name": "no_such_net"}, 60)
    assert "no_such_net" in found["reason"]


@pytest.mark.slow
def test_both_sides_are_bound_to_avx2_in_a_process_of_their_own() -> None:
    if native_problem() is not None or lanes() < 8:
        pytest.skip("no kernel with AVX2 here")
    whole = children._child("avx2", "whole", TINY, 120, children.AVX2)
    assert (whole["capability"], whole["lanes"]) == ("AVX2", 8)
    assert whole["relative_error"] < 1e-4 and whole["speedup"] > 0
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def test_a_processor_without_avx2_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "lanes", lambda: 4)
    assert children.on_avx2(TINY) == {"reason": "the processor has no AVX2"}


def test_a_compiler_that_fails_is_a_reason_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no compiler\na hint")

    monkeypatch.setattr(torch, "compile", lambda _: fail)
    assert children._compiled("bottom", TINY) == {"reason": "RuntimeError: no compiler"}


@pytest.mark.slow
def test_the_benchmark_runs_and_names_every_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    # A limit that the compiler cannot meet: the record says so.
    options = replace(bench.QUICK, width=4, batch=2, threads=1, compile_limit_s=1)
    record: dict[str, Any] = json.loads(json.dumps(bench.run(options, "smoke test")))
    lines = bench.figures(record)
    assert len(lines) == len(record["limits"]) == 15 + 2 * ("layer" in record["avx2"])
    assert all(line.value >= 0 for line in lines)
    assert "was not finished" in record["compiled"]["whole"]["reason"]
    page = bench.markdown(record)
    for line in lines:
        assert line.what in page
    for part in ("bottom", "whole"):
        assert all(one["relative_error"] < 1e-4 for one in record[part].values())
    assert record["memory"]["dense"]["running"] > 0


def test_the_benchmark_of_batch_sizes_says_what_goes_beyond_its_limit() -> None:
    def part(ratio: float) -> dict[str, Any]:
        one = {"ratio": ratio, "relative_error": 1e-6, "holds": ratio <= batches.LIMIT}
        return {"batches": {"1": one}, "compact_seconds": 1.0}

    record = {
        "options": {"batches": [1], "measured": 2},
        "network": "net",
        "idle": part(0.9),
        "busy": part(1.2),
    }
    record["missed"] = batches.missed(record)
    assert record["missed"] == ["net, made on a busy machine, batch 1: 1.200 of the model's time, error 1e-06"]
    assert "| net | idle | 0.90 | 1.0 |" in batches.table([record])


@pytest.mark.slow
def test_the_benchmark_of_batch_sizes_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setitem(batches.NETWORKS, "defective_resnet18_cifar", {"blocks": "paper", "width": 4})
    record = json.loads(json.dumps(batches.run("defective_resnet18_cifar", batches.QUICK, "smoke test")))
    parts = [record["idle"], record["busy"]]
    assert all(one["relative_error"] < 1e-4 for part in parts for one in part["batches"].values())


def test_the_records_of_batch_sizes_hold_and_the_page_is_theirs() -> None:
    folder = batches.HERE / "batches"
    records = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in batches.NETWORKS]
    assert [record["missed"] for record in records] == [[]] * len(records)
    assert all(batches.missed(record) == record["missed"] for record in records)
    assert (folder / "README.md").read_text(encoding="utf-8") == batches.page(records)


def test_the_command_in_a_record_says_what_decides_its_figures() -> None:
    args = argparse.Namespace(quick=False, networks=["defective_regnetx_002"], rounds=5, out=Path("elsewhere"))
    assert batches.command_of(args) == (
        "python -m recipes.bench_engine.batches --networks defective_regnetx_002 --rounds 5"
    )
