"""Files that are whole or not there, and folders that are known to take them before the work begins.

A file is written beside its place, under a name of its own (``.dcn-0123456789abcdef.tmp``), and then moved onto it. A
process that is killed in between leaves that draft; the next write into the folder removes it. A draft that
somebody is writing is locked (``flock``), and the lock goes with its process, however that ends: whether a draft is
alive does not hang on clocks, nor on process numbers, which mean nothing in another container. Where locks do not work
(some network drives, Windows) only drafts older than an hour go, and no write takes that long.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dcn_plugin.errors import DataError, OutputError, OutputPermissionError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_output", "remove_leftovers", "write_atomic"]

_DRAFT = re.compile(r"\.(dcn-)?[0-9a-f]{16}\.tmp")  # without "dcn-": of earlier versions, which did not lock
_ABANDONED = 3600  # seconds
_PROBE = bytes(4096)
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

_swept: set[Path] = set()  # folders that this process has looked into


def write_atomic(path: str | os.PathLike[str], *content: str | bytes | memoryview) -> None:
    """Write a file so that a reader, a kill or a full disk never sees half of it.

    Args:
        path: where to; its folder is made if need be.
        content: the parts of the file in order; text is written as UTF-8.

    Raises:
        OutputError: it cannot be written, and why; what was there before stays.
    """
    target = Path(path)
    with _named(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise _no_folder(target.parent) from error
        if (folder := target.parent.absolute()) not in _swept:
            _swept.add(folder)
            remove_leftovers(folder)
        with _draft(target.parent) as (draft, file):
            for part in content:
                file.write(part.encode() if isinstance(part, str) else part)
            file.flush()
            os.fsync(file.fileno())
            if fcntl is None:  # an open file cannot be moved there
                file.close()
            os.replace(draft, target)
    _sync_folder(target.parent)


def check_output(folder: str | os.PathLike[str]) -> None:
    """Find out before the work whether files can be written into a folder; removes what killed processes left in it.

    Nothing stays behind: a folder that does not exist is not made, its nearest ancestor is tried.

    Raises:
        DataError: it is a file.
        OutputError: they cannot.
    """
    place = Path(folder).absolute()
    if os.path.lexists(place) and not place.is_dir():
        raise DataError("Results go into a folder.", os.fspath(folder), "a folder, or a name that is free")
    with _named(Path(folder)):
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise _no_folder(place)
        remove_leftovers(place)
        with _draft(place) as (_, file):
            file.write(_PROBE)  # a full disk takes names, but no content
            file.flush()
            os.fsync(file.fileno())


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Remove the drafts in a folder that no process is writing any more; not those in folders below it."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if (draft := _DRAFT.fullmatch(entry.name)) is not None:
                with contextlib.suppress(OSError):  # another process was faster, or it belongs to somebody else
                    _remove_dead(entry.path, locks=draft[1] is not None)


def _remove_dead(path: str, *, locks: bool) -> None:
    with open(path, "rb") as file:
        old = time.time() - os.fstat(file.fileno()).st_mtime > _ABANDONED
        if locks and fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                old = True  # nobody holds it
            except BlockingIOError:
                return
            except OSError:  # this file system has no locks
                pass
    if old:
        os.unlink(path)


@contextlib.contextmanager
def _draft(folder: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file that other processes know to be written, gone afterwards unless it was moved."""
    draft, file = _open_draft(folder)
    try:
        yield draft, file
    finally:
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _open_draft(folder: Path) -> tuple[Path, IO[bytes]]:
    while True:
        draft = folder / f".dcn-{secrets.token_hex(8)}.tmp"  # a rename is atomic only within one folder
        file = draft.open("xb")
        if fcntl is None:
            return draft, file
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return draft, file
        file.close()  # another process took it for a dead one in the moment before it was locked


@contextlib.contextmanager
def _named(target: Path) -> Iterator[None]:
    """Say which file or folder it is: a full disk names none, and a draft's name means nothing to anybody."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        kind = OutputPermissionError if isinstance(error, PermissionError) else OutputError
        raised = kind(
            f"{target} cannot be written: {error.strerror or error}.",
            os.fspath(target),
            "a folder that files can be written into, on a disk with room",
            "free some space" if error.errno in _FULL else "name another folder, or mend this one",
        )
        raised.errno, raised.strerror, raised.filename = error.errno, error.strerror, os.fspath(target)
        raise raised from error


def _no_folder(path: Path) -> NotADirectoryError:
    return NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path))


def _sync_folder(folder: Path) -> None:
    # The new name is on disk only once its folder is; file systems that cannot do it say so with OSError.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
