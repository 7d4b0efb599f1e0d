"""Formats of the field, on tiny files in the layouts in which they are published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets
from torchvision.transforms import functional as F

from dcn_plugin.data import load_cifar_c, load_npz, load_stl10, open_images
from dcn_plugin.errors import ClassesError, DataError, LabelError, SpecError
from tests.data.test_array_files import noise
from tests.image_files import write_folder


def medmnist(path: Path, *, channels: int = 1) -> Path:
    """As medmnist writes it: uint8 images, labels uint8 (N, 1)."""
    shape = (4, 4) if channels == 1 else (4, 4, 3)
    parts = {"train": [0, 1, 2, 1], "val": [1, 0], "test": [1, 0, 1]}
    arrays = {}
    for part, labels in parts.items():
        arrays[f"{part}_images"] = noise(len(labels), *shape)
        arrays[f"{part}_labels"] = np.array(labels, np.uint8)[:, None]
    np.savez(path, **arrays)
    return path


def keras(path: Path) -> Path:
    """As mnist.npz of Keras."""
    np.savez(path, x_train=noise(3, 4, 4), y_train=np.uint8([2, 0, 1]), x_test=noise(2, 4, 4), y_test=np.uint8([1, 0]))
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_medmnist_is_read_part_by_part(tmp_path: Path, channels: int) -> None:
    path = medmnist(tmp_path / "pneumoniamnist.npz", channels=channels)
    test = load_npz(path, split="test")
    assert (test.labels.tolist(), test.name, test.shape) == ([1, 0, 1], "pneumoniamnist/test", (channels, 4, 4))
    assert test.num_classes == 3  # the test part alone would say 2
    assert open_images(f"npz:{path}").content_hash == test.content_hash
    assert open_images(f"npz:{path}", part="train").labels.tolist() == [0, 1, 2, 1]
    assert open_images(f"npz:{path}", part="val").labels.tolist() == [1, 0]
    assert open_images(f"npz:{path},split=val", part="train").labels.tolist() == [1, 0]
    named = open_images(f"npz:{path},images_key=val_images,labels_key=val_labels,num_classes=5")
    assert (len(named), named.num_classes) == (2, 5)
    with pytest.raises(SpecError, match=r"several parts.*'train', 'val', 'test'.*split='test'"):
        load_npz(path)
    with pytest.raises(SpecError, match="no part 'extra'"):
        load_npz(path, split="extra")


def test_kerass_archives_are_read_part_by_part(tmp_path: Path) -> None:
    path = keras(tmp_path / "mnist.npz")
    assert load_npz(path, split="train").labels.tolist() == [2, 0, 1]
    assert load_npz(path, split="test").num_classes == 3
    assert open_images(f"npz:{path}").labels.tolist() == [1, 0]
    with pytest.raises(SpecError, match=r"no part 'val'.*'train', 'test'"):
        open_images(f"npz:{path}", part="val")


def test_any_names_of_arrays_will_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", data=noise(2, 4, 4), target=[1, 0])
    assert load_npz(tmp_path / "a.npz", images_key="data", labels_key="target").labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"lacks arrays.*data.*images_key="):
        load_npz(tmp_path / "a.npz")
    with pytest.raises(DataError, match="lacks arrays"):
        load_npz(tmp_path / "a.npz", images_key="data", labels_key="labels")


def test_several_classes_an_image_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "chestmnist.npz", test_images=noise(2, 4, 4), test_labels=np.zeros((2, 14), np.uint8))
    with pytest.raises(LabelError, match="several classes an image"):
        load_npz(tmp_path / "chestmnist.npz", split="test")


def test_class_names_say_what_the_numbers_of_an_archive_are(tmp_path: Path) -> None:
    path = keras(tmp_path / "mnist.npz")
    data = open_images(f"npz:{path},class_names=zero,one,two,three")
    assert (open_images(f"npz:{path}", class_names=["a", "b", "c"]).class_names, data.num_classes) == (
        ("a", "b", "c"),
        4,
    )
    with pytest.raises(LabelError):
        load_npz(path, split="train", class_names=["a", "b"])


def write_cifar_c(root: Path, count: int = 2) -> np.ndarray:
    root.mkdir()
    images = noise(5 * count, 4, 4, 3)
    np.save(root / "fog.npy", images)
    np.save(root / "gaussian_noise.npy", images[::-1].copy())
    np.save(root / "labels.npy", np.tile(np.arange(count, dtype=np.uint8) + 3, 5))
    return images


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_cifar_c_gives_the_images_of_one_severity(tmp_path: Path, severity: int) -> None:
    images = write_cifar_c(tmp_path / "CIFAR-10-C")
    data = load_cifar_c(tmp_path / "CIFAR-10-C", "fog", severity=severity)
    own = images[2 * (severity - 1) : 2 * severity].transpose(0, 3, 1, 2)
    assert torch.equal(data.images, torch.from_numpy(np.ascontiguousarray(own)).float() / 255)
    assert (data.labels.tolist(), data.num_classes, data.name) == ([3, 4], 10, f"cifar10c/fog/{severity}")
    assert data.class_names is not None
    assert data.class_names[3] == "cat"
    spec = f"cifar10c:{tmp_path / 'CIFAR-10-C'},corruption=fog,severity={severity}"
    assert open_images(spec).content_hash == data.content_hash


def test_cifar_c_gives_all_severities_or_says_what_is_there(tmp_path: Path) -> None:
    root = tmp_path / "c"
    write_cifar_c(root)
    assert len(load_cifar_c(root, "gaussian_noise")) == 10
    assert open_images(f"cifar100c:{root},corruption=fog").num_classes == 100
    with pytest.raises(DataError, match=r"'haze' is not in.*'fog', 'gaussian_noise'.*pass one of fog"):
        load_cifar_c(root, "haze")
    with pytest.raises(SpecError, match=r"has to be named.*fog, gaussian_noise.*corruption=fog"):
        open_images(f"cifar10c:{root}")
    with pytest.raises(SpecError, match=r"severity.*1 \.\. 5"):
        load_cifar_c(root, "fog", severity=6)
    with pytest.raises(SpecError, match="severity is a number"):
        open_images(f"cifar10c:{root},corruption=fog,severity=high")
    np.save(root / "labels.npy", np.zeros(3))
    with pytest.raises(DataError, match="not a label an image"):
        load_cifar_c(root, "fog")
    np.save(root / "fog.npy", noise(4, 4, 4, 3))
    with pytest.raises(DataError, match="not laid out as CIFAR-C"):
        load_cifar_c(root, "fog")
    (root / "fog.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match=r"fog\.npy cannot be read"):
        load_cifar_c(root, "fog")


def write_stl10(folder: Path, split: str = "test") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}_X.bin").write_bytes(noise(2, 3, 96, 96).tobytes())
    (folder / f"{split}_y.bin").write_bytes(bytes([10, 1]))


def test_stl10_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path / "stl10_binary")
    (tmp_path / "stl10_binary" / "class_names.txt").write_text("airplane\nbird\n")
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda _: True)
    theirs = datasets.STL10(str(tmp_path), split="test")
    data = load_stl10(tmp_path)
    assert torch.equal(data.images, torch.from_numpy(theirs.data).float() / 255)
    assert data.labels.tolist() == theirs.labels.tolist() == [9, 0]
    assert open_images(f"stl10:{tmp_path / 'stl10_binary'}").content_hash == data.content_hash


def test_stl10_that_is_not_whole_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train_X\.bin and train_y\.bin"):
        load_stl10(tmp_path, train=True)
    write_stl10(tmp_path)
    (tmp_path / "test_y.bin").write_bytes(bytes([10]))
    with pytest.raises(DataError, match="not whole"):
        load_stl10(tmp_path)
    with pytest.raises(SpecError, match="no validation part"):
        open_images(f"stl10:{tmp_path}", part="val")


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_colours_become_grey_as_in_torchvision_and_grey_becomes_three_channels(tmp_path: Path, kind: str) -> None:
    if kind == "npz":
        np.savez(tmp_path / "a.npz", images=noise(3, 3, 4, 5), labels=[0, 1, 0])
        spec = f"npz:{tmp_path / 'a.npz'}"
    else:
        spec = f"folder:{write_folder(tmp_path / 'a', {'ant': 2, 'bee': 1})}"
    colours = open_images(spec).take(torch.arange(3))
    grey = open_images(f"{spec},channels=1")
    assert grey.shape[0] == open_images(spec, channels=1).shape[0] == 1
    images = grey.take(torch.arange(3))
    assert torch.allclose(images, F.rgb_to_grayscale(colours), atol=0.6 / 255 if kind == "folder" else 2e-4)
    if kind == "npz":
        np.savez(tmp_path / "b.npz", images=noise(3, 1, 4, 5), labels=[0, 1, 0])
        three = open_images(f"npz:{tmp_path / 'b.npz'},channels=3").take(torch.arange(3))
        assert torch.equal(three, open_images(f"npz:{tmp_path / 'b.npz'}").take(torch.arange(3)).expand(-1, 3, -1, -1))


def test_a_set_in_memory_is_numbered_by_name() -> None:
    data = open_images("digits", size=8, limit=20)
    names = [*reversed("0123456789"), "none"]
    other = open_images("digits", size=8, limit=20, class_names=names)
    assert other.labels.tolist() == [9 - label for label in data.labels.tolist()]
    assert (other.num_classes, other.class_names) == (11, tuple(names))
    with pytest.raises(ClassesError, match="not among the names given"):
        open_images("digits", size=8, class_names=["0", "1"])


def test_options_that_are_none_are_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"no option 'chanels'.*did you mean channels"):
        open_images(f"folder:{tmp_path},chanels=1")
    with pytest.raises(SpecError, match="channels"):
        open_images(f"folder:{tmp_path},channels=2")
    with pytest.raises(SpecError, match="twice"):
        open_images(f"folder:{tmp_path},channels=1,channels=3")
    with pytest.raises(SpecError, match="num_classes is a number"):
        open_images(f"npz:{keras(tmp_path / 'a.npz')},num_classes=many")


def test_a_comma_in_a_path_is_part_of_it(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "a, b" / "x,y", {"ant": 1, "bee": 1})
    assert len(open_images(f"folder:{root}")) == len(open_images(f"folder:{root},channels=1")) == 2
