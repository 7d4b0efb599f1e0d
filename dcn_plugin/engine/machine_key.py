"""What compact() measured on this machine is kept in files, and holds for machines of this key alone."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import torch

from dcn_plugin.engine.native import lanes, native_problem
from dcn_plugin.support.cache_folder import CacheFolder, Key
from dcn_plugin.support.environment import hardware, package_versions

__all__ = ["MEASURED", "machine"]

MEASURED = CacheFolder("engine")


def machine(device: torch.device) -> Key:
    """What every measurement depends on: processor and threads, versions, the code of the engine."""
    return {"hardware": hardware(device), "lanes": _lanes(), "versions": package_versions(), "code": _engine_code()}


def _lanes() -> int | None:
    """Of the kernel, which the environment may bound."""
    return lanes() if native_problem() is None else None


@functools.cache
def _engine_code() -> str:
    """SHA-256 over the files of the engine, the C kernel included."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.[cp]*")):
        if path.suffix in (".c", ".py"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
