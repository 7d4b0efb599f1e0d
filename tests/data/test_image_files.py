"""Image files with their classes: batches decoded ahead, their content hash, and files that are broken or missing."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dcn_plugin.data import ImageFolder, image_files
from dcn_plugin.data.decode import EvalTransform
from dcn_plugin.data.image_files import ImageFiles, LabelledFile, evenly_spaced, images_under
from dcn_plugin.errors import DataError, SpecError
from tests.image_files import everything, pixels, write_folder, write_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", {"cat": 4, "ant": 3, "bee": 5})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files in the order in which their decoding began."""
    seen: list[str] = []
    original = image_files.decode

    def counting(path: os.PathLike[str], *args: Any) -> torch.Tensor:
        seen.append(Path(path).name)
        return original(path, *args)

    monkeypatch.setattr(image_files, "decode", counting)
    return seen


def test_batches_have_the_size_asked_for_but_the_last(root: Path) -> None:
    assert [len(labels) for _, labels in ImageFolder(root).batches(5)] == [5, 5, 2]
    with pytest.raises(SpecError, match="batch size"):
        next(ImageFolder(root).batches(0))


def test_opening_decodes_nothing_and_reading_only_what_is_in_hand(root: Path, decoded: list[str]) -> None:
    data = ImageFolder(root, threads=2)
    assert (data.content_hash, len(data), data.shape) != ("", 0, ())
    assert decoded == []
    batches = data.batches(3)
    next(batches)
    batches.close()
    assert 3 <= len(decoded) <= 6
    decoded.clear()
    assert len(everything(data)[0]) == len(decoded) == 12


def test_any_image_can_be_had_by_its_index(root: Path, decoded: list[str]) -> None:
    data = ImageFolder(root, size=6)
    images, _ = everything(data)
    decoded.clear()
    assert torch.equal(data.take(torch.tensor([7, 0, 7])), images[[7, 0, 7]])
    assert len(decoded) == 3


def test_the_content_hash_sees_a_byte_a_name_a_class_and_the_transform(root: Path) -> None:
    first = ImageFolder(root)
    assert first.content_hash == first.content_hash == ImageFolder(root, name="other").content_hash
    hashes = {
        first.content_hash,
        ImageFolder(root, size=6).content_hash,
        ImageFolder(root, size=6, resize=7).content_hash,
        ImageFolder(root, size=6, resize=7, interpolation="bicubic").content_hash,
        ImageFolder(root, channels=1).content_hash,
        ImageFolder(root, limit=5).content_hash,
        ImageFolder(root, class_names=["ant", "bee", "cat", "dog"]).content_hash,
        ImageFolder(root, class_names=["bee", "ant", "cat"]).content_hash,
    }
    assert len(hashes) == 8
    path = root / "bee" / "2.png"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert ImageFolder(root).content_hash not in hashes
    content[-1] ^= 1
    path.write_bytes(content)
    assert ImageFolder(root).content_hash == first.content_hash
    path.rename(path.with_name("x.png"))
    assert ImageFolder(root).content_hash != first.content_hash


def test_the_content_hash_sees_another_name_in_the_same_place(root: Path) -> None:
    before = ImageFolder(root).content_hash
    (root / "cat" / "3.png").rename(root / "cat" / "4.png")
    assert ImageFolder(root).content_hash != before


def test_the_content_hash_does_not_depend_on_where_the_folder_lies(root: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(root, tmp_path / "elsewhere" / "copy")
    assert ImageFolder(copy).content_hash == ImageFolder(root, threads=1).content_hash


def test_a_broken_image_is_named_when_it_is_read(root: Path) -> None:
    broken = root / "bee" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    batches = ImageFolder(root, size=8).batches(2)
    next(batches)
    with pytest.raises(DataError, match=r"bee/3\.png cannot be read"):
        list(batches)


def test_an_image_that_vanishes_or_changes_its_size_is_named(root: Path) -> None:
    data = ImageFolder(root)
    write_image(root / "ant" / "1.png", pixels(9, 9))
    with pytest.raises(DataError, match=r"ant/1\.png has changed its size"):
        everything(data)
    (root / "ant" / "1.png").unlink()
    with pytest.raises(DataError, match=r"ant/1\.png cannot be read"):
        _ = data.content_hash


def test_no_thread_at_all_is_refused(root: Path) -> None:
    with pytest.raises(SpecError, match="threads"):
        ImageFolder(root, threads=0)


def test_files_in_any_folders_are_a_set_with_the_classes_that_are_given(tmp_path: Path) -> None:
    arrays = [pixels(8, 8, seed=seed) for seed in range(3)]
    paths = ["b.png", "deep/er/a.png", "c.png"]
    for path, array in zip(paths, arrays, strict=True):
        write_image(tmp_path / path, array)
    files = [LabelledFile(path, label) for path, label in zip(paths, (1, 0, 1), strict=True)]
    data = ImageFiles(tmp_path, files, ["x", "y"], transform=EvalTransform(), name="mine", threads=1)
    assert (len(data), data.num_classes, data.shape, data.name) == (3, 2, (3, 8, 8), "mine")
    images, labels = everything(data, 2)
    assert torch.equal(images, torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays]) / 255)
    assert labels.tolist() == data.labels.tolist() == [1, 0, 1]
    with pytest.raises(SpecError, match="same name"):
        ImageFiles(tmp_path, files, ["x", "x"], transform=EvalTransform(), name="mine")


def test_threads_do_not_outlive_the_batches_and_no_more_than_asked_for_decode(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, names = image_files.decode, set()

    def watched(*args: Any) -> torch.Tensor:
        names.add(threading.current_thread().name)
        return decode(*args)

    monkeypatch.setattr(image_files, "decode", watched)
    before = threading.active_count()
    batches = ImageFolder(root, threads=2).batches(3)
    next(batches)
    batches.close()
    assert 1 <= len(names) <= 2
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("total", "limit", "places"),
    [(5, None, [0, 1, 2, 3, 4]), (3, 9, [0, 1, 2]), (12, 3, [0, 4, 8]), (7, 3, [0, 2, 4]), (7, 1, [0]), (0, 4, [])],
)
def test_a_limit_spreads_evenly_over_the_set(total: int, limit: int | None, places: list[int]) -> None:
    assert evenly_spaced(total, limit) == places


def test_images_lie_below_a_folder_in_torchvisions_order_and_follow_links(tmp_path: Path) -> None:
    for path in ("b/2.png", "b/10.JPG", "b/a/9.webp", "a.bmp", "b/.hidden.png", ".cache/1.png", "b/notes.txt"):
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.tiff").touch()
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    assert images_under(tmp_path / "set") == ["a.bmp", "b/10.JPG", "b/2.png", "b/a/9.webp", "linked/1.tiff"]
