"""What computes the steps of a run: the model itself, torch.compile, or the engine on the neurons that exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.checkpoint.train_config import TrainConfig
from dcn_plugin.engine import compact_training
from dcn_plugin.errors import CompactError, NotDefectiveError, SpecError, TraceError
from dcn_plugin.training.precision import compute_dtype
from dcn_plugin.training.processes import Alone

__all__ = ["Stepper", "check_engine", "stepper"]


@dataclass(frozen=True)
class Stepper:
    """The forward pass of a run's steps.

    Args:
        forward: images (N, C, H, W) -> what the model gives.
        rows: names of the convolutions that run on rows, with which a run goes on; None: the engine has no part in it.
        text: for logs and records; "" for the model itself.
    """

    forward: Callable[[Tensor], Any]
    rows: tuple[str, ...] | None = None
    text: str = ""


def check_engine(config: TrainConfig, processes: Alone) -> None:
    """Refuse what the engine cannot do, where it was asked for by name.

    Raises:
        SpecError: it computes in one process, in float32, on the CPU.
    """
    problem = _problem(config, processes)
    if problem is not None and (config.engine == "c" or config.norm_statistics == "live"):
        what, got, allowed = problem
        raise SpecError(f"The training engine computes {what}.", got, allowed, "engine='dense' or 'auto'")


def _problem(config: TrainConfig, processes: Alone) -> tuple[str, object, str] | None:
    dtype = compute_dtype(config.amp, processes.device)
    if processes.team.size > 1:
        return "in one process", processes.team.size, "one process"
    if processes.device.type != "cpu":
        return "on the CPU", str(processes.device), "cpu"
    if dtype != torch.float32 or processes.precision != "no":
        return "in float32", f"amp={config.amp}, {processes.precision}", "amp=False"
    return None


def stepper(
    model: nn.Module,
    prepared: nn.Module,
    config: TrainConfig,
    processes: Alone,
    input_size: tuple[int, int, int],
    rows: Sequence[str] | None,
) -> Stepper:
    """The forward pass that ``config`` asks for.

    Args:
        model: the bare model, in training mode.
        prepared: the model as its processes call it.
        config: of the run.
        processes: of the run.
        input_size: (C, H, W) of the images.
        rows: what an earlier session of this run had chosen; None: there was none.

    Raises:
        SpecError, NotDefectiveError, CompactError, TraceError: the engine was asked for by name and cannot be used.
    """
    if config.engine == "dense":
        return Stepper(torch.compile(prepared) if config.compile else prepared)
    if _problem(config, processes) is not None:
        return Stepper(prepared, (), "dense: no engine for these processes, this device or precision")
    try:
        fast = compact_training(
            model,
            backend="c" if config.engine == "c" else "auto",
            batch_size=config.batch_size,
            norm_statistics=config.norm_statistics,
            rows=rows,
            input_size=input_size,
        )
    except (NotDefectiveError, CompactError, TraceError) as error:
        if config.engine == "c" or config.norm_statistics == "live":
            raise
        return Stepper(prepared, (), f"dense: {error.what}")
    chosen = fast.plan.rows
    text = f"{fast.backend}: {len(chosen)} of {len(fast.plan.layers)} convolutions on the neurons that exist"
    return Stepper(fast if chosen else prepared, chosen, text if chosen else f"dense: {fast.plan.note or 'no gain'}")
