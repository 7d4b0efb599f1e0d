from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import datasets, transforms

from dcn_plugin.data import ImageFolder
from dcn_plugin.errors import DataError, SpecError
from tests.image_files import everything, pixels, write_folder, write_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "photos", {"cat": 4, "ant": 3, "bee": 5})


@pytest.mark.parametrize("batch_size", [1, 5, 12, 50])
def test_images_labels_and_order_are_those_of_torchvision(root: Path, batch_size: int) -> None:
    write_image(root / "bee" / "b" / "9.png", pixels(seed=90))
    write_image(root / "bee" / "a" / "deep" / "9.png", pixels(seed=91))
    write_image(root / "bee" / "10.PNG", pixels(seed=92))
    (root / "bee" / "notes.txt").write_text("no image")
    theirs = datasets.ImageFolder(str(root), transforms.ToTensor())
    ours = ImageFolder(root)
    assert list(ours.class_names) == theirs.classes == ["ant", "bee", "cat"]
    assert (ours.name, ours.num_classes, ours.shape, len(ours)) == ("photos", 3, (3, 8, 8), len(theirs))
    images, labels = everything(ours, batch_size)
    assert torch.equal(images, torch.stack([image for image, _ in theirs]))
    assert labels.tolist() == theirs.targets
    assert torch.equal(ours.labels, labels)
    assert images.dtype == torch.float32


def test_the_order_does_not_depend_on_the_file_system(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ImageFolder(root)
    iterdir, walk = Path.iterdir, os.walk

    def shuffled(items: Any) -> list[Any]:
        items = list(items)
        random.Random(3).shuffle(items)
        return items

    def other_walk(*args: Any, **options: Any) -> Iterator[Any]:
        return iter(shuffled((parent, inner, shuffled(names)) for parent, inner, names in walk(*args, **options)))

    monkeypatch.setattr(os, "walk", other_walk)
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(shuffled(iterdir(path))))
    after = ImageFolder(root)
    assert after.files == before.files
    assert after.content_hash == before.content_hash


def test_a_size_makes_images_of_different_sizes_fit(root: Path) -> None:
    write_image(root / "cat" / "9.png", pixels(20, 11))
    images, _ = everything(ImageFolder(root, size=(6, 7), channels=1))
    assert images.shape == (13, 1, 6, 7)
    with pytest.raises(DataError, match=r"differ in size: cat/9\.png from ant/0\.png.*\(20, 11\).*size=224"):
        ImageFolder(root)


def test_a_limit_takes_images_of_every_part_of_the_set(root: Path) -> None:
    data = ImageFolder(root, limit=3)
    assert [file.path for file in data.files] == ["ant/0.png", "bee/1.png", "cat/0.png"]
    assert data.num_classes == 3
    assert len(ImageFolder(root, limit=100)) == 12
    with pytest.raises(SpecError, match="limit"):
        ImageFolder(root, limit=0)


def test_class_names_number_the_classes_as_the_network_does(root: Path) -> None:
    names = ["dog", "cat", "bee", "ant"]
    data = ImageFolder(root, class_names=names)
    assert data.num_classes == 4
    assert data.labels.tolist() == [3] * 3 + [2] * 5 + [1] * 4
    with pytest.raises(DataError, match=r"no class of class_names.*ant"):
        ImageFolder(root, class_names=["bee", "cat"])


def test_hidden_files_and_folders_are_passed_over(root: Path) -> None:
    before = ImageFolder(root).files
    (root / "ant" / "._0.png").write_text("left behind by a file manager")
    write_image(root / ".ipynb_checkpoints" / "0.png", pixels())
    write_image(root / "ant" / ".thumbs" / "0.png", pixels())
    assert ImageFolder(root).files == before


def test_what_is_not_laid_out_so_is_refused_with_the_layout(tmp_path: Path) -> None:
    layout = r"<class>/<image>\.png, one sub-folder a class"
    with pytest.raises(DataError, match=rf"no such image folder.*{layout}"):
        ImageFolder(tmp_path / "missing")
    write_image(tmp_path / "flat" / "1.png", pixels())
    with pytest.raises(DataError, match=rf"no sub-folder.*{layout}"):
        ImageFolder(tmp_path / "flat")
    (tmp_path / "flat" / "cat").mkdir()
    with pytest.raises(DataError, match=rf"without an image.*cat.*{layout}"):
        ImageFolder(tmp_path / "flat")


def test_a_class_without_an_image_is_an_error_unless_classes_are_given(root: Path) -> None:
    (root / "dog").mkdir()
    with pytest.raises(DataError, match=r"without an image.*'dog'"):
        ImageFolder(root)
    assert ImageFolder(root, class_names=["ant", "bee", "cat", "dog"]).num_classes == 4
