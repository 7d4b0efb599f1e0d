from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchvision import datasets

from dcn_plugin.data import load_mnist_idx, load_npz, load_torchvision
from dcn_plugin.errors import DataError, ImageRangeError, LabelError, MissingExtraError, SpecError

LABELS = np.array([2, 0, 1, 1])


def noise(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(1)).integers(0, 256, shape, dtype=np.uint8)


def npz(path: Path, images: np.ndarray, labels: np.ndarray = LABELS) -> Path:
    np.savez_compressed(path, images=images, labels=labels)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_npz_images_come_out_the_same_whatever_their_layout_and_type(
    tmp_path: Path, dtype: type[np.generic], channels: int
) -> None:
    bytes_ = noise(4, channels, 5, 6)
    first = bytes_ if dtype == np.uint8 else (bytes_ / 255).astype(dtype)
    expected = torch.from_numpy(bytes_).float() / 255
    loaded = [
        load_npz(npz(tmp_path / "one.npz", first)),
        load_npz(npz(tmp_path / "two.npz", first.transpose(0, 2, 3, 1))),
        load_npz(npz(tmp_path / "three.npz", first.transpose(0, 2, 3, 1)), layout="NHWC"),
    ]
    for data in loaded:
        assert torch.allclose(data.images, expected, atol=1e-3 if dtype == np.float16 else 1e-7)
        assert data.labels.tolist() == LABELS.tolist()
    assert (loaded[0].num_classes, loaded[0].name, loaded[0].shape) == (3, "one", (channels, 5, 6))


def test_npz_images_without_a_channel_axis_are_grey(tmp_path: Path) -> None:
    images = noise(4, 5, 3)
    assert torch.equal(load_npz(npz(tmp_path / "a.npz", images)).images[:, 0], torch.from_numpy(images).float() / 255)


@pytest.mark.parametrize("shape", [(4, 3, 8, 3), (4, 1, 8, 3), (4, 8, 8, 4)])
def test_an_ambiguous_layout_is_an_error_until_it_is_given(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = npz(tmp_path / "a.npz", noise(*shape))
    with pytest.raises(DataError, match="layout='NCHW'"):
        load_npz(path)
    assert load_npz(path, layout="NCHW").shape == shape[1:]
    assert load_npz(path, layout="NHWC").shape == (shape[3], shape[1], shape[2])


def test_the_number_of_classes_and_the_name_can_be_given(tmp_path: Path) -> None:
    data = load_npz(npz(tmp_path / "a.npz", noise(4, 1, 2, 2)), num_classes=7, name="mine")
    assert (data.num_classes, data.name) == (7, "mine")


@pytest.mark.parametrize(
    ("images", "labels", "error"),
    [
        (noise(4, 3, 2, 2).astype(np.int32), LABELS, ImageRangeError),
        (noise(4, 3, 2, 2) / 100, LABELS, ImageRangeError),
        (noise(4, 3), LABELS, DataError),
        (noise(4, 3, 2, 2), LABELS + 0.5, LabelError),
        (noise(4, 3, 2, 2), LABELS.astype(complex), LabelError),
        (noise(4, 3, 2, 2), np.eye(4)[LABELS], LabelError),
        (noise(4, 3, 2, 2), LABELS[:3], LabelError),
        (noise(4, 3, 2, 2), -LABELS, LabelError),
        (noise(0, 3, 2, 2), LABELS[:0], DataError),
    ],
)
def test_npz_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, error: type[Exception]
) -> None:
    with pytest.raises(error):
        load_npz(npz(tmp_path / "a.npz", images, labels))


class Trap:
    """Unpickling it leaves a trace."""

    sprung: list[int] = []  # noqa: RUF012

    def __reduce__(self) -> tuple[Any, ...]:
        return self.sprung.append, (1,)


def test_nothing_in_an_npz_file_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, images=np.array([Trap()], dtype=object), labels=LABELS)
    with pytest.raises(DataError, match="cannot be read"):
        load_npz(path)
    assert not Trap.sprung


def test_what_is_no_npz_file_is_refused_by_name(tmp_path: Path) -> None:
    text, array, other, cut = (tmp_path / name for name in ("text.npz", "array.npy", "other.npz", "cut.npz"))
    text.write_text("no arrays")
    np.save(array, LABELS)
    np.savez(other, x_test=LABELS)
    cut.write_bytes(npz(tmp_path / "a.npz", noise(4, 3, 20, 20)).read_bytes()[:900])
    for path in (text, array, other, cut, tmp_path / "missing.npz", tmp_path):
        with pytest.raises(DataError, match=r"an \.npz file with the arrays images and labels"):
            load_npz(path)
    with pytest.raises(SpecError, match="layout"):
        load_npz(tmp_path / "a.npz", layout="CHWN")  # type: ignore[arg-type]


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, *, prefix: str = "t10k", zipped: bool = False) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    contents = (("images-idx3", noise(4, 6, 5)), ("labels-idx1", LABELS.astype(np.uint8)))
    paths = []
    for name, array in contents:
        path = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
        paths.append(path)
    return paths[0], paths[1]


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read_zipped_or_not(tmp_path: Path, zipped: bool) -> None:
    data = load_mnist_idx(*write_mnist(tmp_path, zipped=zipped))
    assert torch.equal(data.images[:, 0], torch.from_numpy(noise(4, 6, 5)).float() / 255)
    assert data.labels.tolist() == LABELS.tolist()
    assert (data.num_classes, data.name) == (10, "t10k")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(zipped=st.booleans(), cut=st.floats(0, 0.99), which=st.integers(0, 1))
def test_an_idx_file_that_breaks_off_is_named(tmp_path: Path, zipped: bool, cut: float, which: int) -> None:
    paths = write_mnist(tmp_path, zipped=zipped)
    content = paths[which].read_bytes()
    paths[which].write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DataError, match=paths[which].name):
        load_mnist_idx(*paths)


def test_idx_files_of_another_kind_or_length_are_refused(tmp_path: Path) -> None:
    images, labels = write_mnist(tmp_path)
    with pytest.raises(DataError, match="begins 00000803"):
        load_mnist_idx(labels, images)
    with pytest.raises(DataError, match="cannot be read"):
        load_mnist_idx(tmp_path / "missing", labels)
    images.write_bytes(images.read_bytes() + b"!")
    with pytest.raises(DataError, match="not whole"):
        load_mnist_idx(images, labels)
    images.write_bytes(idx(noise(3, 6, 5)))
    with pytest.raises(LabelError):
        load_mnist_idx(images, labels)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("inner", ["raw", "root"])
def test_mnist_lies_where_torchvision_puts_it_or_in_the_folder_itself(tmp_path: Path, name: Any, inner: str) -> None:
    folder = tmp_path / name / "raw" if inner == "raw" else tmp_path
    write_mnist(folder, zipped=inner == "root")
    assert load_torchvision(name, tmp_path).name == f"{name.lower()}/test"
    with pytest.raises(DataError, match=f"{name} is not in this folder.*train-images-idx3-ubyte"):
        load_torchvision(name, tmp_path, train=True)
    write_mnist(folder, prefix="train")
    assert len(load_torchvision(name, tmp_path, train=True)) == 4


def test_mnist_is_read_as_torchvision_reads_it(tmp_path: Path) -> None:
    for prefix in ("t10k", "train"):
        write_mnist(tmp_path / "MNIST" / "raw", prefix=prefix)
    theirs = datasets.MNIST(tmp_path, train=False, download=False)
    ours = load_torchvision("MNIST", tmp_path)
    assert torch.equal(ours.images[:, 0], theirs.data.float() / 255)
    assert torch.equal(ours.labels, theirs.targets)


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> np.ndarray:
    """Write a tiny CIFAR whose checksums torchvision takes for those of the published files."""
    kind = getattr(datasets, name)
    pixels = noise(3, 3072)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    key = "labels" if name == "CIFAR10" else "fine_labels"

    def dump(file: str, content: dict[str, Any]) -> str:
        data = pickle.dumps(content, protocol=2)
        (folder / file).write_bytes(data)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    batch = {"data": pixels, key: [3, 0, 9]}
    for attribute in ("train_list", "test_list"):
        listed = [[file, dump(file, batch)] for file, _ in getattr(kind, attribute)]
        monkeypatch.setattr(kind, attribute, listed)
    meta = dict(kind.meta)
    meta["md5"] = dump(meta["filename"], {meta["key"]: [str(n) for n in range(10)]})
    monkeypatch.setattr(kind, "meta", meta)
    return pixels.reshape(3, 3, 32, 32)


@pytest.mark.parametrize(("name", "classes"), [("CIFAR10", 10), ("CIFAR100", 100)])
def test_cifar_is_read_through_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, classes: int
) -> None:
    pixels = write_cifar(tmp_path, monkeypatch, name)
    data = load_torchvision(name, tmp_path)
    assert torch.equal(data.images, torch.from_numpy(pixels).float() / 255)
    assert (data.labels.tolist(), data.num_classes, data.name) == ([3, 0, 9], classes, f"{name.lower()}/test")
    assert len(load_torchvision(name, tmp_path, train=True)) == (15 if name == "CIFAR10" else 3)


def test_a_cifar_pickle_that_was_tampered_with_is_not_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, monkeypatch, "CIFAR10")
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError, match="differ from the published ones"):
        load_torchvision("CIFAR10", tmp_path)
    assert not Trap.sprung


def test_svhn_is_read_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    pixels = noise(32, 32, 3, 4)
    path = tmp_path / "test_32x32.mat"
    savemat(path, {"X": pixels, "y": np.array([[10], [1], [9], [10]])})
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(datasets.SVHN.split_list, "test", ["", "test_32x32.mat", md5])
    data = load_torchvision("SVHN", tmp_path)
    assert torch.equal(data.images, torch.from_numpy(pixels).permute(3, 2, 0, 1).float() / 255)
    assert data.labels.tolist() == [0, 1, 9, 0]
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(MissingExtraError, match="pip install scipy"):
        load_torchvision("SVHN", tmp_path)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("CIFAR10", "cifar-10-batches-py/ with data_batch_1"),
        ("CIFAR100", "cifar-100-python/ with train, test and meta"),
        ("SVHN", "test_32x32.mat"),
        ("MNIST", "t10k-images-idx3-ubyte"),
        ("FashionMNIST", "FashionMNIST/raw"),
    ],
)
def test_a_missing_set_is_an_error_that_shows_the_layout(tmp_path: Path, name: Any, layout: str) -> None:
    with pytest.raises(DataError, match=layout):
        load_torchvision(name, tmp_path)


def test_an_unknown_torchvision_set_is_refused_with_the_list(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="'CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST', 'SVHN'"):
        load_torchvision("EMNIST", tmp_path)  # type: ignore[arg-type]
