"""One process at a time: a lock beside a file that several runs read, change and write back."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["locked"]


@contextlib.contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Wait until no other process or thread holds the lock of a file, then hold it.

    The lock is the operating system's and ends with its process, also one that is killed. Where the file system has no
    locks nobody waits.

    Args:
        path: of the file. Its folder is made if need be; the lock is a hidden file beside it, removed at the end.
    """
    lock = Path(path).with_name(f".{Path(path).name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    _wait_for(handle)
    # Whoever held it before has removed its file: then this handle locks a file that nobody else can open.
    while not _is_at(handle, lock):
        os.close(handle)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT)
        _wait_for(handle)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows does not remove open files
            lock.unlink()
        os.close(handle)


def _wait_for(handle: int) -> None:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
