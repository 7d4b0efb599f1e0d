"""Stop a training run wherever it happens to be, start it again, and compare with one that was left alone."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import random
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, nn

from dcn_plugin.checkpoint import read_spec, save_checkpoint
from dcn_plugin.checkpoint.sealed_file import read_archive
from dcn_plugin.errors import CheckpointError, DataError
from dcn_plugin.surgery import defect_spec, defectify, undefectify
from dcn_plugin.training import Batch, TrainConfig, madry, train
from tests.launched import kill_at_random
from tests.toys import image_set
from tests.training import resume_worker
from tests.training.resume_worker import CONFIG, DATA, GRADUAL, VAL, Slow, make, run

# Each run is a process of its own, forked off a server that has imported torch once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.training.resume_worker"])
STEPS = CONFIG.epochs * (len(DATA) // CONFIG.batch_size)


class Injected(Exception):
    pass


class Failing(Slow):
    """Raises at one step of those that it sees."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, model: nn.Module, batch: Batch, generator: Generator) -> Batch:
        if not self.left:
            raise Injected
        self.left -= 1
        return super().__call__(model, batch, generator)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(folder)
    return folder


def without_times(folder: Path) -> Any:
    history = json.loads((folder / "history.json").read_text())
    del history["sessions"]
    for record in [*history["epochs"], history["best"]]:
        assert record.pop("seconds") > 0
    return history


def assert_same(folder: Path, other: Path) -> None:
    """The networks to the byte, the state to the bit, the history but for its times."""
    # The history first: it names the epoch from which they differ.
    assert without_times(folder) == without_times(other)
    for name in ("best", "last"):
        assert (folder / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()
    states = [read_archive(place / "state.safetensors")[0] for place in (folder, other)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("step", random.Random(0).sample(range(STEPS), 4))
def test_a_run_that_failed_at_any_step_ends_bit_equal(step: int, alone: Path, tmp_path: Path) -> None:
    with pytest.raises(Injected):
        run(tmp_path, Failing(step))
    result, _ = run(tmp_path)
    assert_same(tmp_path, alone)
    done = step // (STEPS // CONFIG.epochs)
    assert [session["first_epoch"] for session in result.history.sessions] == ([0, done] if done else [0])


def test_a_folder_changes_no_weight(alone: Path) -> None:
    _, model = run(None)
    kept = read_archive(alone / "last.safetensors")[0]
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def alone_gradual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone-gradual")
    run(folder, config=GRADUAL)
    return folder


@pytest.mark.parametrize("step", [4, 12, 17, 18, 22])
def test_a_run_whose_masks_are_on_their_way_ends_bit_equal_wherever_it_failed(
    step: int, alone_gradual: Path, tmp_path: Path
) -> None:
    with pytest.raises(Injected):
        run(tmp_path, Failing(step), GRADUAL)
    run(tmp_path, config=GRADUAL)
    assert_same(tmp_path, alone_gradual)


def test_the_same_network_goes_on_after_a_stop_with_its_masks_on_their_way(alone_gradual: Path, tmp_path: Path) -> None:
    model = make()
    masks = {key: value.clone() for key, value in model.state_dict().items() if key.endswith(".mask")}
    with pytest.raises(Injected):
        train(model, DATA, GRADUAL, val=VAL, out=tmp_path, step_images=Failing(12))
    assert all(torch.equal(model.state_dict()[key], mask) for key, mask in masks.items())
    train(model, DATA, GRADUAL, val=VAL, out=tmp_path, step_images=Slow())
    assert_same(tmp_path, alone_gradual)


def test_the_best_epoch_is_one_with_the_masks_of_the_goal(alone_gradual: Path) -> None:
    history = json.loads((alone_gradual / "history.json").read_text())
    progress = [record["mask_progress"] for record in history["epochs"]]
    assert progress == pytest.approx([5 / 18, 10 / 18, 15 / 18, 1, 1])
    assert history["best"]["epoch"] >= 3
    kept = read_archive(alone_gradual / "best.safetensors")[0]
    assert all(
        torch.equal(make().state_dict()["1.drop.mask"], mask)
        for mask in (kept["1.drop.mask"], read_archive(alone_gradual / "last.safetensors")[0]["1.drop.mask"])
    )


def test_the_network_of_an_epoch_on_the_way_says_its_p(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dcn_plugin.training.run_folder as folder

    write, said = folder.TrainFolder.write, []

    def watch(self: Any, snapshot: Any, history: Any, network: nn.Module) -> None:
        write(self, snapshot, history, network)
        save_checkpoint(network, tmp_path / "network.safetensors")  # the average
        said.append((read_spec(tmp_path / "network.safetensors").p, defect_spec(snapshot.network).p))

    monkeypatch.setattr(folder.TrainFolder, "write", watch)
    run(tmp_path / "run", config=dataclasses.replace(GRADUAL, gradual="linear"))
    assert all(p == pytest.approx(other) for p, other in said)
    assert [p for p, _ in said] == pytest.approx([1 - 0.5 * done for done in (5 / 18, 10 / 18, 15 / 18, 1, 1)])


def launch(folder: Path, config: TrainConfig) -> ForkServerProcess:
    process = PROCESSES.Process(target=resume_worker.main, args=(str(folder), config))
    process.start()
    return process


@pytest.mark.parametrize("config", [CONFIG, GRADUAL], ids=["masks that stay", "masks on their way"])
def test_a_run_killed_at_random_moments_ends_bit_equal(config: TrainConfig, tmp_path: Path) -> None:
    folder, alone = tmp_path / "killed", tmp_path / "alone"
    state = folder / "state.safetensors"

    def progress() -> int:
        return state.stat().st_mtime_ns if state.exists() else 0

    # Each run in a fresh process: libraries and settings of earlier tests could change how this process rounds.
    kill_at_random(partial(launch, folder, config), progress, kills=3, seed=0, longest=0.03)
    for place in (folder, alone):
        process = launch(place, config)
        process.join()
        assert process.exitcode == 0
    assert len(json.loads((folder / "history.json").read_text())["sessions"]) > 1
    assert_same(folder, alone)


def test_a_finished_run_is_read_and_not_run_again(alone: Path) -> None:
    result, model = run(alone, Failing(0))
    kept = read_archive(alone / "last.safetensors")[0]
    assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items())
    assert len(result.history.epochs) == CONFIG.epochs
    assert len(result.history.sessions) == 1


def start(folder: Path, **change: Any) -> None:
    """The same run with something changed."""
    model = change.pop("model", None) or make()
    given: dict[str, Any] = {"val": VAL, "step_images": Slow(), "data": DATA, "config": CONFIG, **change}
    train(model, given.pop("data"), given.pop("config"), out=folder, **given)


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "learning rate": ({"config": dataclasses.replace(CONFIG, lr=0.06)}, "config.lr"),
    "seed": ({"config": dataclasses.replace(CONFIG, seed=4)}, "config.seed"),
    "data": ({"data": image_set(40, seed=1, shape=(1, 6, 6))}, "data.fingerprint"),
    "no validation": ({"val": None}, "val"),
    "adversarial": ({"step_images": madry(0.1)}, "step_images"),
    "masks": ({"model": defectify(undefectify(make()), ["0"], p=0.5, input_size=(1, 6, 6), seed=1)}, "model.masks"),
    "no masks": ({"model": undefectify(make())}, "model.masks"),
    "masks that come gradually": ({"config": GRADUAL}, "config.gradual"),
    "how it was made": ({"about": {"model": "other"}}, "about.model"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_with_another_run_is_refused_and_left_as_it_is(name: str, alone: Path) -> None:
    change, said = OTHERS[name]
    before = {path: path.read_bytes() for path in alone.iterdir()}
    with pytest.raises(CheckpointError, match=said):
        start(alone, **change)
    assert {path: path.read_bytes() for path in alone.iterdir()} == before


@pytest.mark.parametrize(
    "spoil", [lambda blob: blob[:-9], lambda blob: b"PK" + blob[2:], lambda _: b""], ids=["cut", "no archive", "empty"]
)
def test_a_damaged_state_is_refused_with_the_way_out(spoil: Any, alone: Path, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(spoil((alone / "state.safetensors").read_bytes()))
    with pytest.raises(CheckpointError, match="begin this run again"):
        run(tmp_path)


def test_another_kind_of_archive_is_no_state(alone: Path, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes((alone / "last.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="no state of a training run"):
        run(tmp_path)


def test_a_run_goes_into_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="folder"):
        run(tmp_path / "file")


def test_no_space_is_an_error_and_the_last_epoch_stays(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dcn_plugin.training.run_folder as folder

    write, calls = folder.write_archive, []

    def full(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(*args)

    monkeypatch.setattr(folder, "write_archive", full)
    with pytest.raises(OSError, match="No space"):
        run(tmp_path)
    run(tmp_path)
    assert_same(tmp_path, alone)


def test_frozen_parameters_and_no_momentum_resume_too(tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, batch_size=8, lr=0.05, momentum=0, nesterov=False)
    found = []
    for folder, stops in ((tmp_path / "one", False), (tmp_path / "two", True)):
        for hook in ([Failing(7)] if stops else []) + [Slow()]:
            model = make()
            model[0].weight.requires_grad_(False)  # type: ignore[index, union-attr]
            try:
                train(model, DATA, config, out=folder, step_images=hook)
            except Injected:
                continue
        found.append(model.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
