"""Files in which compact() keeps what it measured on this machine.

::

    <torch.hub.get_dir()>/dcn_plugin/engine/<digest>.json     one record: its key, and what is known under it

``TORCH_HOME`` moves the folder, as it does for the files of torch and timm; ``DCN_ENGINE_CACHE`` names another one, or
is "off". A file that cannot be read, or that holds another key, counts as not there, and a folder that cannot be
written is left alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.hub

from dcn_plugin.engine.native import lanes, native_problem
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.environment import hardware, package_versions

__all__ = ["Key", "cache_folder", "machine", "read_record", "write_record"]

_log = logging.getLogger(__name__)

Key = Mapping[str, Any]


def cache_folder() -> Path | None:
    """Where records are kept; None: nowhere."""
    named = os.environ.get("DCN_ENGINE_CACHE")
    if named is not None and named.lower() in ("off", "0", "no", "false", ""):
        return None
    return Path(torch.hub.get_dir(), "dcn_plugin", "engine") if named is None else Path(named).expanduser()


def machine(device: torch.device) -> Key:
    """What every measurement depends on: processor and threads, versions, the code of the engine."""
    return {"hardware": hardware(device), "lanes": _lanes(), "versions": package_versions(), "code": _engine_code()}


def _lanes() -> int | None:
    """Of the kernel, which the environment may bound."""
    return lanes() if native_problem() is None else None


def read_record(key: Key) -> dict[str, Any] | None:
    """What was kept under a key; None: nothing that can be read."""
    path = _path(key)
    if path is None or not path.is_file():
        return None
    try:
        record = json.loads(path.read_bytes())
        return record if isinstance(record, dict) and record.get("key") == json.loads(json.dumps(key)) else None
    except (OSError, ValueError) as error:
        _log.warning("%s is measured again: it cannot be read (%s)", path, error)
        return None


def write_record(key: Key, record: Mapping[str, Any]) -> None:
    """Keep a record in the place of an earlier one."""
    path = _path(key)
    if path is None:
        return
    try:
        write_atomic(path, json.dumps({"key": key, **record}, indent=1) + "\n")
    except OSError as error:
        _log.info("What was measured is not kept: %s", error)


def _path(key: Key) -> Path | None:
    folder = cache_folder()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return None if folder is None else folder / f"{digest}.json"


@functools.cache
def _engine_code() -> str:
    """SHA-256 over the files of the engine, the C kernel included."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.[cp]*")):
        if path.suffix in (".c", ".py"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
