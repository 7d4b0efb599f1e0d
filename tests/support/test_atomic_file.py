from __future__ import annotations

import copy
import errno
import fcntl
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcn_plugin.errors import DataError, OutputError
from dcn_plugin.support import atomic_file as files
from dcn_plugin.support.atomic_file import check_output, remove_leftovers, write_atomic

DRAFT, EARLIER = ".dcn-0123456789abcdef.tmp", ".0123456789abcdef.tmp"


def test_text_and_bytes_are_written_and_folders_made(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b.txt", "ü")
    write_atomic(tmp_path / "c.bin", b"\x00\xff")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "ü".encode()
    assert (tmp_path / "c.bin").read_bytes() == b"\x00\xff"


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file_whole_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target = tmp_path / "results.json"
    write_atomic(target, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match=r"results.json cannot be written: No space left.*Fix: free some space") as caught:
        write_atomic(target, "new")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(target)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_parts_are_written_one_after_the_other(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", "a", b"b", memoryview(b"c"))
    assert (tmp_path / "x").read_text() == "abc"


def test_an_output_error_survives_copies_and_processes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        write_atomic(tmp_path / "file" / "x", "")
    assert "Not a directory" in str(caught.value)
    for twin in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert str(twin) == str(caught.value) and str(tmp_path / "file" / "x") in str(twin)
        assert twin.errno == caught.value.errno and twin.filename == caught.value.filename


# -------------------------------------------------------------------------------- what killed processes leave


@pytest.fixture(autouse=True)
def nothing_swept(tmp_path: Path) -> Iterator[None]:
    files._swept.clear()  # as in a process that has just begun
    yield
    for path in tmp_path.glob("*.tmp"):
        path.unlink()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_draft_of_a_process_killed_in_a_write_is_removed_by_the_next_write(tmp_path: Path) -> None:
    if not (child := os.fork()):
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        write_atomic(tmp_path / "a", "content")
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    (left,) = names(tmp_path)
    assert files._DRAFT.fullmatch(left)
    write_atomic(tmp_path / "b", "")
    assert names(tmp_path) == {"b"}


def test_a_draft_that_somebody_writes_stays(tmp_path: Path) -> None:
    with (tmp_path / DRAFT).open("xb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(tmp_path / DRAFT, (0, 0))
        write_atomic(tmp_path / "a", "")
        remove_leftovers(tmp_path)
        assert names(tmp_path) == {"a", DRAFT}
    remove_leftovers(tmp_path)
    assert names(tmp_path) == {"a"}


def test_only_drafts_of_ours_are_removed(tmp_path: Path) -> None:
    others = {".tmp", ".dcn-0123.tmp", "dcn-0123456789abcdef.tmp", DRAFT + "x", ".x" + DRAFT}
    for name in others:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "nowhere")
    assert names(tmp_path) == others


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("name", [DRAFT, EARLIER])
@pytest.mark.parametrize(("age", "stays"), [(0, True), (3000, True), (4000, False)])
def test_where_nothing_is_locked_age_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, age: float, stays: bool
) -> None:
    """Earlier versions did not lock; some file systems cannot."""
    if name == DRAFT:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (time.time() - age,) * 2)
    write_atomic(tmp_path / "a", "content")
    assert (tmp_path / "a").read_text() == "content"
    assert names(tmp_path) == {"a", name} if stays else {"a"}


def test_a_draft_taken_for_dead_before_it_was_locked_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls = fcntl.flock, []

    def late(file, how: int) -> None:
        if not calls:
            calls.append(1)
            for path in tmp_path.glob(".dcn-*.tmp"):
                path.unlink()
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    write_atomic(tmp_path / "a", "content")
    assert (tmp_path / "a").read_text() == "content" and names(tmp_path) == {"a"}


# ------------------------------------------------------------------------------------ folders that take no files


def test_a_folder_that_takes_files_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_output(tmp_path)
    check_output(tmp_path / "a" / "b")
    check_output(str(tmp_path))
    assert names(tmp_path) == {"file"}


def test_a_check_removes_leftovers(tmp_path: Path) -> None:
    (tmp_path / DRAFT).touch()
    check_output(tmp_path)
    assert not names(tmp_path)


def test_a_file_or_a_link_to_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(DataError, match="go into a folder"):
            check_output(tmp_path / name)
        with pytest.raises(OutputError, match=rf"{name}/a cannot be written: Not a directory"):
            check_output(tmp_path / name / "a")


def fail(code: int) -> Callable[..., None]:
    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_folder_that_takes_none_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(Path, "open", fail(code))
    with pytest.raises(OutputError, match=f"new/run cannot be written: {os.strerror(code)}") as caught:
        check_output(tmp_path / "new" / "run")
    assert isinstance(caught.value, PermissionError) == (code == errno.EACCES)


def test_a_disk_that_takes_names_but_no_content_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(OutputError, match="No space left"):
        check_output(tmp_path)
    assert not names(tmp_path)
