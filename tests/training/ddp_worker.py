"""One of two processes: ``torchrun --nproc-per-node 2 -m tests.training.ddp_worker FOLDER``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from dcn_plugin.data import load_digits
from dcn_plugin.errors import MaskStateError
from dcn_plugin.evaluate.predictions import correct_on
from dcn_plugin.models import cifar_resnet
from dcn_plugin.surgery import defectify
from dcn_plugin.training import TrainConfig, isolated_rng, train
from dcn_plugin.training.checks import masks_hash

# With masks that change from step to step, which each process works out for itself.
CONFIG = TrainConfig(epochs=4, batch_size=32, shift=1, gradual="linear", gradual_share=0.6)


def net(seed: int = 0) -> nn.Module:
    """A small defective ResNet for the digits; ``seed`` is that of the masks."""
    with isolated_rng(0):
        plain = cifar_resnet((1, 1, 1, 1), in_chans=1, width=4)
    return defectify(plain, p=0.5, input_size=(1, 16, 16), seed=seed)


def main(folder: Path) -> None:
    """Train on both processes, then alone, and report."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank, splits = accelerator.process_index, load_digits(size=16)
    report: dict[str, Any] = {}

    def accuracy(model: nn.Module) -> float:
        return float(correct_on(model, splits.test).double().mean())

    model = net()
    result = train(model, splits.train, CONFIG, val=splits.val, out=folder / "run", accelerator=accelerator)
    report["trained"] = {key: value.clone() for key, value in model.state_dict().items()}
    report["masks"], report["two_processes"] = masks_hash(model), accuracy(model)
    report["history"] = [(record.loss, record.train_accuracy, record.val_accuracy) for record in result.history.epochs]

    seen = 0

    class Failing:
        def __repr__(self) -> str:
            return "Failing()"

        def __call__(self, model: nn.Module, batch: Any, generator: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == 60:
                raise RuntimeError("injected")
            return batch

    with contextlib.suppress(RuntimeError):
        train(net(), splits.train, CONFIG, out=folder / "again", accelerator=accelerator, step_images=Failing())
    accelerator.wait_for_everyone()
    model = net()
    train(model, splits.train, CONFIG, out=folder / "again", accelerator=accelerator, step_images=Failing())
    report["resumed"] = model.state_dict()

    try:
        train(net(seed=rank), splits.train, CONFIG, accelerator=accelerator)
        report["complaint"] = ""
    except MaskStateError as error:
        report["complaint"] = str(error)

    alone = net()
    if rank == 0:
        train(alone, splits.train, CONFIG)
        report["one_process"] = accuracy(alone)
    torch.save(report, folder / f"report{rank}.pt")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
