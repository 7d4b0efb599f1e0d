"""Files that are whole or not there: written beside their place, then moved onto it."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

__all__ = ["write_atomic"]


def write_atomic(path: str | os.PathLike[str], *content: str | bytes | memoryview) -> None:
    """Write a file so that a reader, a kill or a full disk never sees half of it.

    Args:
        path: where to; its folder is made if need be.
        content: the parts of the file in order; text is written as UTF-8.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{secrets.token_hex(8)}.tmp")  # a rename is atomic only within one folder
    try:
        with draft.open("xb") as file:
            for part in content:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    # The new name is on disk only once its folder is; file systems that cannot do it say so with OSError.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
