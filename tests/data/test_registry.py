from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dcn_plugin.data import DATA_SPECS, ImageFolder, load_digits, open_images
from dcn_plugin.data.registry import parts_of
from dcn_plugin.errors import DataError, SpecError
from tests.data.test_array_files import write_mnist
from tests.data.test_formats import keras, medmnist
from tests.image_files import write_folder


@pytest.fixture
def npz(tmp_path: Path) -> str:
    path = tmp_path / "mine.npz"
    np.savez(path, images=np.zeros((5, 3, 8, 6), np.uint8), labels=np.arange(5))
    return f"npz:{path}"


def test_digits_mean_the_test_part_at_size_16_unless_said_otherwise() -> None:
    splits = load_digits()
    assert open_images("digits").content_hash == splits.test.content_hash
    assert open_images("digits:test").name == splits.test.name
    assert open_images("digits:train").content_hash == splits.train.content_hash
    assert open_images("digits:val").content_hash == splits.val.content_hash
    assert open_images("digits", size=20).shape == open_images("digits", size=(20, 20)).shape == (1, 20, 20)


def test_a_part_is_what_the_text_names_or_else_what_is_asked_for(tmp_path: Path, npz: str) -> None:
    assert open_images("digits", part="train").name == "digits16/train"
    assert open_images("digits", part="val").name == "digits16/val"
    assert open_images("digits:train", part="val").name == "digits16/train"
    assert len(open_images(npz, part="train")) == 5
    root = write_folder(tmp_path / "photos", {"a": 2, "b": 1})
    assert len(open_images(f"folder:{root}", part="val")) == 3
    with pytest.raises(SpecError, match="'train', 'val', 'test'"):
        open_images("digits", part="training")  # type: ignore[arg-type]


def test_torchvisions_sets_have_a_train_and_a_test_part_and_none_for_validation(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_mnist(tmp_path, prefix="train")
    spec = f"mnist:{tmp_path}"
    assert open_images(spec).name == open_images(spec, part="test").name == "mnist/test"
    assert open_images(spec, part="train").name == "mnist/train"
    assert open_images(spec, part="train", limit=2).name == "mnist/train[:2]"
    with pytest.raises(SpecError, match=r"no validation part.*split a share off"):
        open_images(spec, part="val")


def test_a_limit_keeps_the_first_images_of_a_set_in_memory() -> None:
    whole, part = open_images("digits"), open_images("digits", limit=7)
    assert torch.equal(part.take(torch.arange(7)), whole.take(torch.arange(7)))
    assert (len(part), part.name, part.num_classes) == (7, "digits16/test[:7]", 10)
    assert open_images("digits", limit=10**6).name == whole.name


def test_a_folder_is_opened_lazily_and_cut_to_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path / "val", {"a": 4, "b": 4}, height=9)
    data = open_images(f"folder:{root}", size=6, resize=7, limit=2)
    assert isinstance(data, ImageFolder)
    assert (data.shape, data.labels.tolist()) == ((3, 6, 6), [0, 1])
    assert data.content_hash == ImageFolder(root, size=6, resize=7, limit=2).content_hash
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_images("folder:~/val").shape == (3, 9, 8)


def test_npz_has_the_size_it_has(npz: str) -> None:
    assert len(open_images(npz)) == 5
    assert open_images(npz, size=(8, 6), limit=2).shape == (3, 8, 6)
    with pytest.raises(SpecError, match=r"are 8 x 6.*only folder:PATH resizes"):
        open_images(npz, size=8)


@pytest.mark.parametrize("kind", [form.partition(":")[0] for form in DATA_SPECS if form not in ("digits",)])
def test_every_kind_says_what_it_expects_where_nothing_is(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="Allowed:"):
        open_images(f"{kind}:{tmp_path / 'missing'}")


@pytest.mark.parametrize("spec", ["", "imagenet", "digits:all", "folder", "folder:", "cifar10", "npz:", "cifar11:x"])
def test_an_unknown_set_is_refused_with_the_list(spec: str) -> None:
    with pytest.raises(SpecError, match=r"digits .*folder:PATH .*npz:PATH .*cifar10:ROOT .*mnist:ROOT .*svhn:ROOT"):
        open_images(spec)


@pytest.mark.parametrize("options", [{"limit": 0}, {"limit": -3}, {"resize": 20}, {"size": (16, 18)}, {"size": 4}])
def test_options_that_do_not_fit_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        open_images("digits", **options)  # type: ignore[arg-type]


def test_the_parts_of_a_set_are_those_that_can_be_asked_for(tmp_path: Path, npz: str) -> None:
    split = keras(tmp_path / "keras.npz")
    expected = {
        "digits": ("train", "val", "test"),
        "digits:train": (),
        f"mnist:{tmp_path}": ("train", "test"),
        f"stl10:{tmp_path},channels=1": ("train", "test"),
        f"cifar10c:{tmp_path},corruption=fog": (),
        f"folder:{tmp_path}": (),
        npz: (),
        f"npz:{split}": ("train", "test"),
        f"npz:{split},split=test": (),
        f"npz:{medmnist(tmp_path / 'med.npz')}": ("train", "val", "test"),
    }
    assert {spec: parts_of(spec) for spec in expected} == expected
