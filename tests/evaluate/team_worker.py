"""One of several processes: ``torchrun --nproc-per-node 2 -m tests.evaluate.team_worker FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from dcn_plugin.adapters.torchattacks import TorchAttack
from dcn_plugin.attacks import PGD, HopSkipJump
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import AdversarialSet, Result, RunDirectory, Team, minimal_distance, tapm, transfer, whitebox
from tests.evaluate.watched import known_set, two_models
from tests.toys import linear_model

DATA = known_set(50)
ATTACKS = [PGD(0.1, steps=2), TorchAttack("PGD", eps=0.1, steps=2, random_start=True, batch=8)]


def measure(folder: Path, accelerator: Any) -> None:
    """Measure with four protocols and write the records."""
    models, store, team = two_models(), RunDirectory(folder), Team.of(accelerator)
    distance = HopSkipJump(max_queries=60, seed=3)
    common: dict[str, Any] = {"seed": 0, "batch_size": 16, "store": store, "accelerator": accelerator}
    results: list[Result] = []
    for protocol in (
        transfer(models, models, ATTACKS, DATA, **common),
        tapm(models, models, ATTACKS, DATA, **common),
        whitebox(models, ATTACKS, DATA, **common),
        minimal_distance(models, distance, DATA, count=40, **common),
    ):
        results += protocol
    if team.leads:
        store.finish({"name": "team"}, results)


def main(folder: Path) -> None:
    """Together, again together, then the first process alone."""
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    measure(folder / "together", accelerator)
    if rank == 0:
        (folder / "together" / "results.json").rename(folder / "first.json")
    measure(folder / "together", accelerator)
    if rank == 0:
        measure(folder / "alone", None)
    accelerator.wait_for_everyone()

    model = two_models()["a"]
    loaded = AdversarialSet("a", model, ATTACKS[0], DATA, batch_size=16, team=Team.of(accelerator)).loaded
    own = AdversarialSet("a", model, ATTACKS[0], DATA, batch_size=16).loaded
    assert torch.equal(loaded.images, own.images)

    try:
        list(whitebox({"a": linear_model(64, seed=rank)}, ATTACKS, DATA, seed=0, accelerator=accelerator))
        complaint = ""
    except SpecError as error:
        complaint = str(error)
    assert "processes do not measure the same" in complaint
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
