from __future__ import annotations

import os
from pathlib import Path

import pytest

from dcn_plugin.files import write_atomic


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
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_parts_are_written_one_after_the_other(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", "a", b"b", memoryview(b"c"))
    assert (tmp_path / "x").read_text() == "abc"
