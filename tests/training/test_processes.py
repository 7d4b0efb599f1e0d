from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dcn_plugin.errors import SpecError
from dcn_plugin.training import TrainConfig, train
from dcn_plugin.training.processes import Accelerated
from tests.launched import launched
from tests.toys import image_set
from tests.training.resume_worker import CONFIG, DATA, VAL, make

accelerate = pytest.importorskip("accelerate")


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps its settings in one object a process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def accelerator(**options: Any) -> Any:
    return accelerate.Accelerator(cpu=True, **options)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_one_process_under_accelerate_takes_the_same_steps() -> None:
    config = dataclasses.replace(CONFIG, clip_norm=0.5)
    with_it, without = make(), make()
    before = set(with_it.__dict__)
    train(with_it, DATA, config, val=VAL, accelerator=accelerator())
    train(without, DATA, config, val=VAL)
    assert equal(weights(with_it), weights(without))
    assert set(with_it.__dict__) == before


def test_accelerates_bfloat16_is_taken_off_the_model_again() -> None:
    model = make()
    kinds: list[torch.dtype] = []
    handle = model[0].register_forward_hook(lambda _, __, out: kinds.append(out.dtype))  # type: ignore[index, union-attr]
    before = set(model.__dict__)
    for _ in range(2):
        kinds.clear()
        train(model, DATA, CONFIG, accelerator=accelerator(mixed_precision="bf16"))
        assert torch.bfloat16 in kinds
        kinds.clear()
        model(DATA.images)
        assert kinds == [torch.float32]
        assert set(model.__dict__) == before
    handle.remove()


def test_a_run_under_accelerate_goes_on_where_it_failed(tmp_path: Path) -> None:
    alone, resumed = make(), make()
    train(alone, DATA, CONFIG)
    calls = 0

    def failing(model: nn.Module, batch: Any, generator: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 13:
            raise KeyboardInterrupt
        return batch

    with pytest.raises(KeyboardInterrupt):
        train(make(), DATA, CONFIG, out=tmp_path, accelerator=accelerator(), step_images=failing)
    train(resumed, DATA, CONFIG, out=tmp_path, accelerator=accelerator(), step_images=failing)
    assert equal(weights(alone), weights(resumed))


def test_trackers_get_the_record_of_every_epoch() -> None:
    told: list[tuple[int | None, dict[str, Any]]] = []

    class Tracker(accelerate.tracking.GeneralTracker):
        name = "mine"
        requires_logging_directory = False
        tracker = None

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            pass

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            told.append((step, values))

    carrier = accelerator(log_with=Tracker())
    carrier.init_trackers("test")
    history = train(make(), DATA, CONFIG, val=VAL, accelerator=carrier).history
    assert [step for step, _ in told] == list(range(CONFIG.epochs))
    assert [values["val_accuracy"] for _, values in told] == [record.val_accuracy for record in history.epochs]
    assert all(values.keys() == {"loss", "train_accuracy", "val_accuracy", "lr", "seconds"} for _, values in told)


def test_gradient_accumulation_and_other_precisions_are_refused() -> None:
    with pytest.raises(SpecError, match="gradient_accumulation_steps"):
        Accelerated(accelerator(gradient_accumulation_steps=2))
    carrier = accelerator()
    carrier.state._mixed_precision = "fp16"
    with pytest.raises(SpecError, match="mixed_precision"):
        Accelerated(carrier)


class _Two:
    """As much of an Accelerator of two processes as the checks ask for."""

    distributed_type, mixed_precision, gradient_accumulation_steps = "DistributedType.MULTI_CPU", "no", 1
    process_index, num_processes, device = 0, 2, torch.device("cpu")


@pytest.mark.parametrize(("batch_size", "count"), [(9, 40), (2, 40), (64, 40)])
def test_a_batch_that_cannot_be_shared_out_is_refused(batch_size: int, count: int) -> None:
    data = image_set(count, shape=(1, 6, 6))
    with pytest.raises(SpecError, match="share"):
        train(make(), data, TrainConfig(epochs=1, batch_size=batch_size), accelerator=_Two())


# One test, because its processes import everything anew.
@pytest.mark.slow
def test_two_processes_have_the_accuracy_of_one_and_the_same_masks(tmp_path: Path) -> None:
    launched("tests.training.ddp_worker", str(tmp_path))
    first, second = (torch.load(tmp_path / f"report{rank}.pt", weights_only=True) for rank in (0, 1))

    # Every rank ends with the same network, running statistics and masks included.
    assert equal(first["trained"], second["trained"])
    assert first["masks"] == second["masks"] != ""
    assert first["history"] == second["history"]
    # Training in one process, on the same batches: the same accuracy within noise.
    assert first["one_process"] > 0.8
    assert abs(first["two_processes"] - first["one_process"]) < 0.04
    # A run that failed on both goes on and ends as the one that was left alone.
    assert equal(first["resumed"], first["trained"])
    # Another seed of the masks on one rank is noticed before anything is trained.
    assert "different masks" in first["complaint"] and "different masks" in second["complaint"]

    # The command line.
    out = tmp_path / "cli"
    arguments = ["tests.training.ddp_worker:net", "--data", "digits", "--epochs", "1", "--out", str(out)]
    launched("dcn_plugin.cli", "train", *arguments, "--no-progress")
    assert (out / "best.safetensors").exists()
