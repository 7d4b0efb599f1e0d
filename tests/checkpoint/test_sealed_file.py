"""A sealed file gives back what was written, or names what is wrong; a write is all or nothing."""

from __future__ import annotations

import errno
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcn_plugin.checkpoint.sealed_file import read_archive, ties, write_archive
from dcn_plugin.errors import CheckpointError

STATE = {
    "weight": torch.arange(12.0).view(3, 4),
    "half": torch.linspace(-1, 1, 5).bfloat16(),
    "count": torch.tensor(7),
    "bits": torch.arange(30).view(2, 3, 5) % 3 == 0,
    "flag": torch.tensor(True),
    "nothing": torch.empty(0, 3),
}
TEXT = {"note": "grün", "dcn_plugin.record": "{}"}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("archive") / "a.safetensors"
    write_archive(path, STATE, TEXT)
    return path.read_bytes()


@pytest.mark.parametrize("kind", [str, Path])
def test_a_state_dict_comes_back_with_its_text(tmp_path: Path, kind: type) -> None:
    path = kind(tmp_path / "a.safetensors")
    write_archive(path, STATE, TEXT)
    state, text = read_archive(path)
    assert equal(state, STATE)
    assert text == TEXT


def test_equal_content_is_equal_bytes(tmp_path: Path, blob: bytes) -> None:
    for name in ("b", "c"):
        write_archive(tmp_path / name, dict(STATE), dict(reversed(TEXT.items())))
        assert (tmp_path / name).read_bytes() == blob


def test_any_safetensors_reader_can_open_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_archive(path, STATE, TEXT)
    plain = safetensors.torch.load_file(path)
    assert torch.equal(plain["weight"], STATE["weight"])
    assert plain["bits"].dtype == torch.uint8 and plain["bits"].shape == (4,)


def test_a_tensor_in_another_memory_order_comes_back_right(tmp_path: Path) -> None:
    images = torch.arange(120.0).view(2, 3, 4, 5)
    state = {
        "channels_last": images.to(memory_format=torch.channels_last),
        "transposed": images[0, 0].t(),
        "every_other": images.flatten()[::2],
        "bits": (images % 2 == 0).to(memory_format=torch.channels_last),
    }
    write_archive(tmp_path / "a", state, TEXT)
    assert equal(read_archive(tmp_path / "a")[0], state)


def test_the_same_memory_is_stored_once_and_views_of_it_on_their_own(tmp_path: Path) -> None:
    whole = torch.rand(400, 10)
    state = {"whole": whole, "same": whole.detach(), "row": whole[1], "turned": whole.view(10, 400)}
    assert ties(state) == {"same": "whole"}
    write_archive(tmp_path / "a", state, TEXT)
    assert equal(read_archive(tmp_path / "a")[0], state)
    assert (tmp_path / "a").stat().st_size < 2 * 4 * whole.numel() + 2000


class _Subclass(Tensor):
    """Stands for the sharded and quantised tensors that keep their content elsewhere."""


@pytest.mark.parametrize(
    "value",
    [
        "text",
        torch.empty(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.ones(2).as_subclass(_Subclass),
    ],
    ids=["text", "meta", "sparse", "subclass"],
)
def test_an_entry_without_plain_content_is_refused_by_name(tmp_path: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match=r"'odd' cannot be stored.*Got: .*Allowed: .*Fix: "):
        write_archive(tmp_path / "a", {"weight": torch.ones(2), "odd": value}, TEXT)
    assert list(tmp_path.iterdir()) == []


def test_a_dtype_that_safetensors_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot store.*complex128"):
        write_archive(tmp_path / "a", {"wave": torch.ones(2, dtype=torch.complex128)}, TEXT)
    assert list(tmp_path.iterdir()) == []


def test_a_file_cut_off_anywhere_is_refused_by_name(tmp_path: Path, blob: bytes) -> None:
    path = tmp_path / "a"
    for length in range(len(blob)):
        path.write_bytes(blob[:length])
        with pytest.raises(CheckpointError, match=f"damaged.*Got: '{length} bytes'.*Fix: "):
            read_archive(path)
    path.write_bytes(blob + b"\0")
    with pytest.raises(CheckpointError, match="damaged"):
        read_archive(path)


@given(data=st.data())
def test_a_changed_byte_is_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, blob: bytes, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(blob) - 1))
    change = data.draw(st.integers(1, 255))
    _expect_refusal_or_the_same(tmp_path_factory.getbasetemp() / "changed", blob, place, change)


@pytest.mark.parametrize("change", [0x01, 0x20, 0xFF])
def test_every_byte_is_guarded(tmp_path: Path, blob: bytes, change: int) -> None:
    refused = [_expect_refusal_or_the_same(tmp_path / "a", blob, place, change) for place in range(len(blob))]
    assert sum(refused) > 0.98 * len(blob)


def _expect_refusal_or_the_same(path: Path, blob: bytes, place: int, change: int) -> bool:
    damaged = bytearray(blob)
    damaged[place] ^= change
    path.write_bytes(damaged)
    try:
        state, text = read_archive(path)
    except CheckpointError:
        return True
    # Blanks at the end of the header, and the case of \\u escapes, carry no content.
    assert equal(state, STATE) and text == TEXT
    return False


def _header(blob: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(blob[8 : 8 + struct.unpack("<Q", blob[:8])[0]])
    return header


def _with_header(blob: bytes, header: dict[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + blob[8 + struct.unpack("<Q", blob[:8])[0] :]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h["__metadata__"].update(note="other"), "sealed"),
        (lambda h: h["__metadata__"].pop("dcn_plugin.sha256"), "sealed"),
        (lambda h: h.update(renamed=h.pop("weight")), "sealed"),
        (lambda h: h["weight"].update(shape=[4, 3]), "sealed"),
        (lambda h: h["weight"].update(dtype="I32"), "sealed"),
        (lambda h: h["__metadata__"].update({"dcn_plugin.format": "2"}), "format that this version does not know"),
        (lambda h: h.update(__metadata__=[]), "damaged"),
    ],
    ids=["text", "seal", "name", "shape", "dtype", "format", "no table"],
)
def test_an_edited_header_is_refused_by_name(tmp_path: Path, blob: bytes, edit: Any, message: str) -> None:
    header = _header(blob)
    edit(header)
    (tmp_path / "a").write_bytes(_with_header(blob, header))
    with pytest.raises(CheckpointError, match=message):
        read_archive(tmp_path / "a")


def test_rewriting_the_header_without_a_change_is_no_damage(tmp_path: Path, blob: bytes) -> None:
    (tmp_path / "a").write_bytes(_with_header(blob, _header(blob)))
    assert equal(read_archive(tmp_path / "a")[0], STATE)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\0" * 64, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 10**6) + b"[" * 10**6],
    ids=["empty", "text", "zeros", "list", "deep"],
)
def test_a_file_that_is_no_safetensors_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        read_archive(tmp_path / "a")


def test_a_plain_safetensors_file_is_refused_with_the_way_to_load_it(tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"plain weights.*Fix: .*load_state_dict\(safetensors.torch.load_file"):
        read_archive(tmp_path / "a")


class _Trap:
    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.sprung,))


def test_a_pickle_is_refused_and_never_executed(tmp_path: Path) -> None:
    path, sprung = tmp_path / "a.pt", tmp_path / "sprung"
    torch.save({"weight": _Trap(sprung)}, path)
    for content in (path.read_bytes(), pickle.dumps(_Trap(sprung))):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
            read_archive(path)
    assert not sprung.exists()
    pickle.loads(path.read_bytes())
    assert sprung.exists()  # the trap works


def test_a_missing_file_and_a_folder_in_its_place_are_the_systems_own_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_archive(tmp_path / "nowhere")
    with pytest.raises(OSError):
        write_archive(tmp_path, STATE, TEXT)
    assert [*tmp_path.parent.glob("*.tmp"), *tmp_path.rglob("*.tmp")] == []


class _FullDisk:
    """An open file that takes ``room`` bytes and then has no more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, part: bytes | memoryview) -> None:
        self.file.write(part[: self.room])
        self.room -= len(part)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("fault", ["open", "full at once", "full later", "fsync", "replace"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, existing: bool
) -> None:
    path = tmp_path / "a.safetensors"
    if existing:
        write_archive(path, {"old": torch.ones(1)}, TEXT)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    true_open = Path.open

    def fail(*_: object, **__: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    def full(self: Path, mode: str = "r") -> Any:
        file = true_open(self, mode)
        return _FullDisk(file, 10 if fault == "full at once" else 700) if "x" in mode else file

    with monkeypatch.context() as patch:
        if fault == "open":
            patch.setattr(Path, "open", fail)
        elif fault.startswith("full"):
            patch.setattr(Path, "open", full)
        else:
            patch.setattr(os, fault, fail)
        with pytest.raises(OSError, match=r"No space|Permission"):
            write_archive(path, STATE, TEXT)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_a_permission_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_archive(tmp_path / "a", STATE, TEXT)


def test_writing_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(tmp_path / "epoch3")
    write_archive(tmp_path / "latest", STATE, TEXT)
    assert (tmp_path / "latest").is_symlink()
    assert equal(read_archive(tmp_path / "epoch3")[0], STATE)


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_archive(tmp_path / "a", STATE, TEXT)
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
