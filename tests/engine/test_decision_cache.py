"""What compact() measured is kept, and taken for layers of the same kinds on the same machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.engine import clock, compaction, decision_cache, ladder, machine_key, measured_costs
from dcn_plugin.engine.machine_key import MEASURED
from dcn_plugin.engine.measured_costs import Measured
from dcn_plugin.models import cifar_resnet
from tests.engine.cases import needs_c
from tests.engine.compacted import choice_wins

SIZE = (3, 16, 16)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DCN_ENGINE_CACHE", str(tmp_path))
    for module in (clock, decision_cache):
        monkeypatch.setattr(module, "is_quiet", lambda: True)
    return tmp_path


def network(
    seed: int = 0, p: float = 0.3, width: int = 8, layers: tuple[int, int, int, int] = (1, 1, 1, 1)
) -> nn.Module:
    torch.manual_seed(seed)
    net = cifar_resnet(layers, width=width)
    return dcn.defectify(net, p=p, seed=seed, sampling="exact", input_size=SIZE).eval()


def decisions(folder: Path) -> list[Path]:
    """The files of decisions; those of layers are beside them."""
    return [path for path in folder.glob("*.json") if "layers" in json.loads(path.read_bytes())["key"]]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("it is measured again")


@pytest.fixture
def no_more_measuring(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def stop() -> None:
        monkeypatch.setattr(compaction, "_fastest", refuse)

    return stop


@needs_c
def test_the_second_compaction_measures_nothing_and_decides_the_same(
    folder: Path, no_more_measuring: Callable[[], None]
) -> None:
    model, images = network(), torch.rand(3, *SIZE)
    first = dcn.compact(model, batch_size=4)
    (file,) = decisions(folder)
    no_more_measuring()
    second = dcn.compact(model, batch_size=4)
    assert str(second.plan) == str(first.plan)
    assert second.plan == first.plan
    with torch.no_grad():
        torch.testing.assert_close(second(images), model(images), rtol=1e-4, atol=1e-4)
    assert "hardware" in json.loads(file.read_bytes())["key"]


@needs_c
def test_other_weights_and_masks_of_the_same_density_take_the_same_decision(
    folder: Path, no_more_measuring: Callable[[], None]
) -> None:
    dcn.compact(network(0), batch_size=2)
    no_more_measuring()
    other, images = network(1), torch.rand(2, *SIZE)
    with torch.no_grad():
        torch.testing.assert_close(dcn.compact(other, batch_size=2)(images), other(images), rtol=1e-4, atol=1e-4)


@needs_c
def test_lists_of_rows_are_those_of_the_new_masks_and_stay_within_the_budget(
    folder: Path, no_more_measuring: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Measured, "_on_rows", lambda *_: 1e-6)
    monkeypatch.setattr(ladder, "raced", choice_wins)
    first = dcn.compact(network(0), batch_size=2)
    measured = dcn.compact(network(1), batch_size=2, use_cache=False)
    assert first.plan.backend == "c"
    assert first.plan.packed_bytes != measured.plan.packed_bytes
    no_more_measuring()
    assert dcn.compact(network(1), batch_size=2).plan.packed_bytes == measured.plan.packed_bytes
    monkeypatch.setattr(decision_cache, "list_bytes", lambda step, live: 2**31)
    with pytest.raises(AssertionError, match="measured again"):
        dcn.compact(network(1), batch_size=2)


@needs_c
@pytest.mark.parametrize(
    "change", ["p", "width", "batch", "budget", "threads", "damaged", "foreign", "another key", "off", "argument"]
)
def test_what_may_change_a_decision_is_measured_anew(
    change: str, folder: Path, no_more_measuring: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dcn.compact(network(), batch_size=2)
    (file,) = decisions(folder)
    no_more_measuring()
    model = network(p=0.5 if change == "p" else 0.3, width=16 if change == "width" else 8)
    options = {"batch_size": 3 if change == "batch" else 2}
    if change == "budget":
        options["max_packed_bytes"] = 2**29
    if change == "threads":
        monkeypatch.setattr(machine_key, "hardware", lambda device: {"threads": 99})
    if change == "damaged":
        file.write_bytes(file.read_bytes()[:-40])
    if change == "foreign":
        file.write_text("[1, 2]")
    if change == "another key":
        record = json.loads(file.read_bytes())
        file.write_text(json.dumps(record | {"key": record["key"] | {"code": "of another version"}}))
    if change == "off":
        monkeypatch.setenv("DCN_ENGINE_CACHE", "off")
    with pytest.raises(AssertionError, match="measured again"):
        dcn.compact(model, use_cache=change != "argument", **options)


@needs_c
def test_what_was_measured_on_a_busy_machine_is_taken_while_it_is_busy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, no_more_measuring: Callable[[], None]
) -> None:
    quiet = [False]
    for module in (clock, decision_cache):
        monkeypatch.setattr(module, "is_quiet", lambda: quiet[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)  # what is faked must not be set afterwards
    busy = dcn.compact(network(), batch_size=2)
    no_more_measuring()
    assert dcn.compact(network(), batch_size=2).plan == busy.plan
    quiet[0] = True
    with pytest.raises(AssertionError, match="measured again"):
        dcn.compact(network(), batch_size=2)


@needs_c
def test_layers_of_one_kind_are_measured_once_for_all_networks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timings: list[object] = []

    def watch(run: Callable[[], object], device: torch.device, **_: object) -> float:
        run()
        timings.append(run)
        return 1.0

    monkeypatch.setattr(measured_costs, "timed", watch)
    monkeypatch.setattr(ladder, "raced", choice_wins)
    dcn.compact(network(), batch_size=2)
    first, second = len(timings), network(layers=(2, 1, 1, 1))
    dcn.compact(second, batch_size=2)
    # Of the longer network only the block that the shorter one does not have.
    assert 0 < len(timings) - first < first / 2
    timings.clear()
    dcn.compact(second, batch_size=2, use_cache=False)
    assert len(timings) >= first
    timings.clear()
    (layers,) = set(folder.glob("*.json")) - set(decisions(folder))
    layers.write_bytes(layers.read_bytes()[:-10])
    dcn.compact(network(p=0.5), batch_size=2)
    assert len(timings) >= first  # a broken file is as good as none


@needs_c
def test_a_decision_of_another_form_is_taken_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_costs, "timed", lambda *_, **__: 1.0)
    monkeypatch.setattr(ladder, "raced", choice_wins)
    plan = dcn.compact(network(), batch_size=2).plan
    (file,) = decisions(folder)
    record = json.loads(file.read_bytes())
    for part, value in (("ladder", 3), ("on_rows", [999]), ("times", [1]), ("ladder", [[[1, ["model"]]], True, True])):
        file.write_text(json.dumps(record | {part: value}))
        assert dcn.compact(network(), batch_size=2).plan.batch_size == plan.batch_size
        assert json.loads(file.read_bytes())[part] != value


@needs_c
def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DCN_ENGINE_CACHE", str(tmp_path / "file" / "folder"))
    monkeypatch.setattr(clock, "is_quiet", lambda: True)
    dcn.compact(network(), batch_size=2)


def test_the_folder_is_torchs_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCN_ENGINE_CACHE")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert MEASURED.path == tmp_path / "dcn_plugin" / "engine"
    monkeypatch.setenv("DCN_ENGINE_CACHE", str(tmp_path / "own"))
    assert MEASURED.path == tmp_path / "own"
    monkeypatch.setenv("DCN_ENGINE_CACHE", "off")
    assert MEASURED.path is None
