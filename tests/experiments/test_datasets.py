from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dcn_plugin.errors import DataError, SpecError
from dcn_plugin.experiments.datasets import DATA, open_data


def image_folder(root: Path, *, ending: str = "png", each: int = 3) -> Path:
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for k in range(each):
                Image.new("RGB", (32, 32), (100 * number, 10 * k, 0)).save(root / part / name / f"{k}.{ending}")
    return root


def idx(root: Path, part: str, count: int) -> None:
    pixels = np.repeat(np.arange(count, dtype=np.uint8), 28 * 28).tobytes()
    labels = (np.arange(count) % 10).astype(np.uint8).tobytes()
    root.mkdir(parents=True, exist_ok=True)
    for name, head, body in (
        ("images-idx3", struct.pack(">HBBIII", 0, 8, 3, count, 28, 28), pixels),
        ("labels-idx1", struct.pack(">HBBI", 0, 8, 1, count), labels),
    ):
        (root / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + body))


def test_the_digits_come_along() -> None:
    data = open_data("digits", None)
    assert data.train(50).shape == data.info.shape == (1, 32, 32)
    assert (len(data.train(50)), len(data.test())) == (50, data.info.test_images)
    assert len(data.train()) == data.info.train_images


def test_an_image_folder_is_mixed_so_that_its_first_images_are_of_all_classes(tmp_path: Path) -> None:
    data = open_data("cifar10", image_folder(tmp_path, each=20))
    assert data.kind == "folder"
    first = data.test(10)
    assert set(first.labels.tolist()) == {0, 1}
    whole = data.test()
    assert sorted(whole.labels.tolist()) == [0] * 20 + [1] * 20
    # Image and label stay together: the red value is the class.
    assert torch.equal((whole.take(torch.arange(40))[:, 0, 0, 0] * 255).round() / 100, whole.labels.float())


@pytest.mark.parametrize(("ending", "title"), [("png", "CIFAR-10 (image folder)"), ("jpg", "CIFAR-10 (JPEG copy)")])
def test_a_copy_is_not_called_the_data_set_as_published(tmp_path: Path, ending: str, title: str) -> None:
    assert open_data("cifar10", image_folder(tmp_path, ending=ending)).title == title


def test_the_stamp_changes_with_the_files_and_with_nothing_else(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    before = open_data("cifar10", root).stamp
    assert open_data("cifar10", root).stamp == before
    Image.new("RGB", (32, 32)).save(root / "test" / "cat" / "more.png")
    assert open_data("cifar10", root).stamp != before


def test_the_stamp_is_that_of_the_files_in_pathlibs_order(tmp_path: Path) -> None:
    root = image_folder(tmp_path)
    # "cat-2" comes before "cat/..." as text and behind it as a path.
    for name in ("cat-2", "cat 2"):
        (root / "train" / name).mkdir()
        Image.new("RGB", (32, 32)).save(root / "train" / name / "0.png")
    expected = hashlib.sha256(b"cifar10 folder")
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        expected.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    assert open_data("cifar10", root).stamp == expected.hexdigest()


def test_mnists_test_images_alone_are_split(tmp_path: Path) -> None:
    idx(tmp_path, "t10k", 50)
    data = open_data("mnist", tmp_path)
    assert "split" in data.title
    assert (len(data.train()), len(data.test())) == (40, 10)
    assert not {image.numpy().tobytes() for image in data.train().take(torch.arange(40))} & {
        image.numpy().tobytes() for image in data.test().take(torch.arange(10))
    }


def test_mnist_with_its_training_images_is_whole(tmp_path: Path) -> None:
    idx(tmp_path, "t10k", 20)
    idx(tmp_path, "train", 30)
    data = open_data("mnist", tmp_path)
    assert (data.title, len(data.train()), len(data.test())) == ("MNIST", 30, 20)


@pytest.mark.parametrize("name", [name for name, info in DATA.items() if info.layout])
def test_missing_data_show_their_layout(tmp_path: Path, name: str) -> None:
    for root in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="ROOT/"):
            open_data(name, root)


def test_an_unknown_data_set_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(SpecError, match="did you mean cifar10"):
        open_data("cifar", None)
