"""Files in which what was measured on this machine is kept from one process to the next.

::

    <torch.hub.get_dir()>/dcn_plugin/<name>/<digest>.json     one record: its key, and what is known under it

``TORCH_HOME`` moves the folders, as it does for the files of torch and timm; ``DCN_<NAME>_CACHE`` names another one, or
is "off". A file that cannot be read, or that holds another key, counts as not there, and a folder that cannot be
written is left alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.hub

from dcn_plugin.support.atomic_file import write_atomic

__all__ = ["CacheFolder", "Key"]

_log = logging.getLogger(__name__)

Key = Mapping[str, Any]


@dataclass(frozen=True)
class CacheFolder:
    """The records of one kind.

    Args:
        name: of the folder, e.g. "engine"; in capitals it is part of its variable, ``DCN_ENGINE_CACHE``.
    """

    name: str

    @property
    def path(self) -> Path | None:
        """Where records are kept; None: nowhere."""
        named = os.environ.get(f"DCN_{self.name.upper()}_CACHE")
        if named is not None and named.lower() in ("off", "0", "no", "false", ""):
            return None
        return Path(torch.hub.get_dir(), "dcn_plugin", self.name) if named is None else Path(named).expanduser()

    def read(self, key: Key) -> dict[str, Any] | None:
        """What was kept under a key; None: nothing that can be read."""
        path = self._file(key)
        if path is None or not path.is_file():
            return None
        try:
            record = json.loads(path.read_bytes())
            return record if isinstance(record, dict) and record.get("key") == json.loads(json.dumps(key)) else None
        except (OSError, ValueError) as error:
            _log.warning("%s is measured again: it cannot be read (%s)", path, error)
            return None

    def write(self, key: Key, record: Mapping[str, Any]) -> None:
        """Keep a record in the place of an earlier one."""
        path = self._file(key)
        if path is None:
            return
        try:
            write_atomic(path, json.dumps({"key": key, **record}, indent=1) + "\n")
        except OSError as error:
            _log.info("What was measured is not kept: %s", error)

    def _file(self, key: Key) -> Path | None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        return None if self.path is None else self.path / f"{digest}.json"
