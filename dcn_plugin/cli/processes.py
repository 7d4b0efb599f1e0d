"""Which device computes, and with which other processes."""

from __future__ import annotations

import os
from typing import Any

from dcn_plugin.errors import MissingExtraError, SpecError

__all__ = ["launched", "open_accelerator", "open_device"]


def open_device(name: str) -> Any:
    """The torch device of this name.

    Raises:
        SpecError: it cannot be used.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(f"The device cannot be used ({str(error).splitlines()[0]}).", name, "cpu, cuda, ...") from error
    return device


def launched() -> bool:
    """Whether ``accelerate launch`` or ``torchrun`` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1


def open_accelerator(device: str | None, *, tracker: str | None = None, folder: str | None = None) -> Any:
    """An Accelerator of the processes that were launched together.

    Args:
        device: as the user names it; "cpu" keeps it off the GPU. Else every process has the one that is its own.
        tracker: a tracker that it tells.
        folder: where that one writes.

    Raises:
        MissingExtraError: Accelerate or the tracker is not installed.
        SpecError: the device cannot be used.
    """
    try:
        from accelerate import Accelerator
        from accelerate.tracking import get_available_trackers
    except ImportError as error:
        raise MissingExtraError("accelerate is not installed.", fix="pip install 'dcn-plugin[train]'") from error
    # Accelerate itself passes over a tracker that is not installed.
    if tracker is not None and tracker not in map(str, get_available_trackers()):
        raise MissingExtraError(f"{tracker} is not installed.", fix=f"pip install {tracker}")
    on_cpu = device is not None and open_device(device).type == "cpu"
    return Accelerator(cpu=on_cpu, log_with=tracker, project_dir=folder)
