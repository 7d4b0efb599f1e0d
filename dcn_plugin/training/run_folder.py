"""What a training run leaves on disk, so that it goes on where it was killed.

::

    DIR/state.safetensors  after every epoch: weights, momentum, average, random state, history; sealed
    DIR/history.json       the history alone, for people and tools
    DIR/best.safetensors   the network of the best epoch so far, where one is chosen
    DIR/last.safetensors   the network at the end of the run

Every file is whole or not there. The state is the truth: it is written before the history and after the best network,
so that a run killed in between makes the same files again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from dcn_plugin.checkpoint.sealed_file import read_archive, write_archive
from dcn_plugin.checkpoint.weights import save_network
from dcn_plugin.errors import CheckpointError
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.training.history import History

__all__ = ["Snapshot", "TrainFolder"]

_HISTORY = "dcn_plugin.training"


class Snapshot:
    """The moving parts of a run: everything that one epoch hands to the next, but for the history.

    Args:
        network: the bare model.
        optimizer: its optimiser, SGD.
        average: the averaged copy of the network, or None.
        generator: of order and augmentation.

    ``rows`` names the convolutions that run on rows, None where the engine has no part in the run: what was measured
    once holds for the whole run, so that it ends with the same bits.
    """

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.SGD, average: nn.Module | None, generator: Generator
    ) -> None:
        self.network, self.optimizer, self.average, self.generator = network, optimizer, average, generator
        self.rows: tuple[str, ...] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name."""
        entries = {f"model.{key}": value for key, value in self.network.state_dict().items()}
        if self.average is not None:
            entries |= {f"average.{key}": value for key, value in self.average.state_dict().items()}
        for number, parameter in enumerate(self._parameters()):
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                entries[f"momentum.{number}"] = momentum
        if self.rows is not None:
            entries["engine.rows"] = torch.frombuffer(bytearray(json.dumps(self.rows).encode()), dtype=torch.uint8)
        return entries | {"generator": self.generator.get_state()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`tensors` gave, of the same model and settings."""
        self.network.load_state_dict(_under("model.", tensors))
        if self.average is not None:
            self.average.load_state_dict(_under("average.", tensors))
        for number, parameter in enumerate(self._parameters()):
            momentum = tensors.get(f"momentum.{number}")
            if momentum is not None:
                # Laid out in memory as the parameter is (channels_last, say), and as momentum was.
                self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum)
        self.generator.set_state(tensors["generator"])
        if "engine.rows" in tensors:
            self.rows = tuple(json.loads(bytes(tensors["engine.rows"].tolist())))

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


class TrainFolder:
    """A folder of one training run.

    Args:
        path: of the folder; it is made when the first epoch ends.
        plan: what the run depends on, as JSON values.
        writes: whether this process writes; of several, the first.
    """

    def __init__(self, path: str | os.PathLike[str], plan: Mapping[str, Any], *, writes: bool = True) -> None:
        self.path, self._plan, self._writes = Path(path), plan, writes

    def read(self) -> tuple[dict[str, Tensor], History] | None:
        """The state after the last finished epoch, or None if there is none.

        Raises:
            CheckpointError: the folder holds another run, or its state is damaged.
        """
        path = self.path / "state.safetensors"
        again = f"train into another folder, or delete {path} to begin this run again"
        try:
            tensors, text = read_archive(path)
            history = History.from_json(text[_HISTORY])
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            raise CheckpointError(error.what, error.got, error.allowed, again) from error
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} is no state of a training run ({error}).", fix=again) from error
        there, here = _flat(history.plan), _flat(self._plan)
        if there != here:
            other = [key for key in sorted(there.keys() | here.keys()) if there.get(key) != here.get(key)]
            raise CheckpointError(
                f"{self.path} holds a run with other settings.",
                {key: f"{there.get(key)} there, {here.get(key)} here" for key in other[:5]},
                "the settings it was started with",
                again,
            )
        return tensors, history

    def write(self, snapshot: Snapshot, history: History, network: nn.Module) -> None:
        """Keep the end of an epoch, and the network if it is the best so far."""
        if not self._writes:
            return
        if history.best is not None and history.best.epoch == len(history.epochs) - 1:
            self._save("best", network, history)
        write_archive(self.path / "state.safetensors", snapshot.tensors(), {_HISTORY: history.to_json()})
        write_atomic(self.path / "history.json", history.to_json())

    def finish(self, history: History, network: nn.Module) -> None:
        """Keep the network at the end of the run."""
        if self._writes:
            self._save("last", network, history)
            write_atomic(self.path / "history.json", history.to_json())

    def best(self) -> Path | None:
        """Where the best network lies, if there is one."""
        path = self.path / "best.safetensors"
        return path if path.exists() else None

    def _save(self, name: str, network: nn.Module, history: History) -> None:
        by = history.selected_by if name == "best" else "last"
        save_network(
            network,
            self.path / f"{name}.safetensors",
            metadata={"epoch": str(history.epochs[-1].epoch), "selected_by": str(by)},
        )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _flat(value: object, name: str = "") -> dict[str, object]:
    """Nested JSON values by their path, e.g. "config.lr"."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: leaf for part, inner in value.items() for key, leaf in _flat(inner, f"{name}.{part}".strip(".")).items()
    }
