"""What layers of each kind take on this machine, kept in one file for all networks."""

from __future__ import annotations

import math

import torch

from dcn_plugin.engine.machine_key import MEASURED, machine
from dcn_plugin.support.cache_folder import Key

__all__ = ["read_layer_times", "write_layer_times"]


def read_layer_times(device: torch.device, backend: str) -> dict[str, list[float]]:
    """What was measured of each kind of layer, with as many threads as PyTorch has now.

    Args:
        device: that the layers compute on.
        backend: of the rows.

    Returns:
        Kind -> numbers, see :class:`dcn_plugin.engine.measured_costs.Measured`; empty where nothing is kept.
    """
    record = MEASURED.read(_key(device, backend)) or {}
    kinds = record.get("kinds")
    if not isinstance(kinds, dict):
        return {}
    return {kind: times for kind, times in kinds.items() if isinstance(times, list) and all(map(_is_time, times))}


def write_layer_times(device: torch.device, backend: str, kinds: dict[str, list[float]]) -> None:
    """Keep what was measured, beside what other programs have kept meanwhile."""
    key = _key(device, backend)
    MEASURED.write(key, {"kinds": {**read_layer_times(device, backend), **kinds}})


def _key(device: torch.device, backend: str) -> Key:
    return {"what": "layers", "backend": backend, **machine(device)}


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0
