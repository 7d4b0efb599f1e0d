"""Layouts as they are published: what looks like an image folder and is not is refused, the rest is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcn_plugin.data import ImageFolder, open_images
from dcn_plugin.errors import ClassesError, DataError
from tests.image_files import pixels, write_folder, write_image


def tiny_imagenet(root: Path) -> Path:
    """Three classes in Tiny-ImageNet's layout."""
    wnids = ["n02", "n01", "n03"]
    for number, wnid in enumerate(wnids):
        write_image(root / "train" / wnid / "images" / f"{wnid}_0.JPEG", pixels(seed=number))
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t7\t7\n")
    lines = []
    for number, wnid in enumerate(["n03", "n01", "n02", "n01"]):
        write_image(root / "val" / "images" / f"val_{number}.JPEG", pixels(seed=10 + number))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t7\t7\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    write_image(root / "test" / "images" / "test_0.JPEG", pixels())
    (root / "wnids.txt").write_text("\n".join(wnids))
    return root


def test_tiny_imagenets_validation_part_is_read_off_its_annotations(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path / "tiny-imagenet-200")
    train, val = ImageFolder(root / "train"), open_images(f"folder:{root / 'val'}")
    assert isinstance(val, ImageFolder)
    assert train.class_names == val.class_names == ("n01", "n02", "n03")
    assert [file.path for file in val.files] == [f"images/val_{number}.JPEG" for number in range(4)]
    assert val.labels.tolist() == [2, 0, 1, 0]
    other = ImageFolder(root / "val", class_names=["n03", "n02", "n01", "n00"])
    assert other.labels.tolist() == [0, 2, 1, 2]
    with pytest.raises(DataError, match=r"no class of class_names.*n03"):
        ImageFolder(root / "val", class_names=["n01", "n02"])


def test_tiny_imagenets_validation_part_sorted_into_classes_is_a_plain_folder(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    for number, wnid in enumerate(["n03", "n01", "n02", "n01"]):
        target = root / "val" / wnid / "images"
        target.mkdir(parents=True, exist_ok=True)
        (root / "val" / "images" / f"val_{number}.JPEG").rename(target / f"val_{number}.JPEG")
    (root / "val" / "images").rmdir()
    assert ImageFolder(root / "val").labels.tolist() == [0, 0, 1, 2]


def test_annotations_that_are_broken_are_refused(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG n03\n")
    with pytest.raises(DataError, match=r"Line 1 of .*tells no image and class"):
        ImageFolder(root / "val")
    (root / "val" / "val_annotations.txt").write_text("")
    with pytest.raises(DataError, match="is empty"):
        ImageFolder(root / "val")


def test_images_without_classes_are_no_class_of_their_own(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    with pytest.raises(DataError, match="one folder 'images' and no class"):
        ImageFolder(root / "test")
    assert ImageFolder(root / "test", class_names=["images"]).num_classes == 1


@pytest.mark.parametrize(
    "parts", [["train", "val"], ["train", "test", "annotations"], ["train"], ["Training", "Validation"]]
)
def test_parts_of_a_data_set_are_no_classes(tmp_path: Path, parts: list[str]) -> None:
    for part in parts:
        write_folder(tmp_path / part, {"ant": 1, "bee": 1})
    with pytest.raises(DataError, match=rf"parts of a data set.*open one of them, e.g. {tmp_path}"):
        ImageFolder(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    write_folder(tmp_path, {"car": 1, "train": 1, "truck": 1})
    assert ImageFolder(tmp_path).num_classes == 3
    write_folder(tmp_path, {"test": 1})
    with pytest.raises(DataError, match="pass class_names="):
        ImageFolder(tmp_path)
    assert ImageFolder(tmp_path, class_names=["car", "train", "truck", "test"]).num_classes == 4


def test_severities_of_imagenet_c_are_no_classes(tmp_path: Path) -> None:
    for severity in range(1, 6):
        write_folder(tmp_path / "fog" / str(severity), {"n01": 1, "n02": 1})
    with pytest.raises(DataError, match=r"severities, as in ImageNet-C.*open one of them, e.g. .*fog/5"):
        ImageFolder(tmp_path / "fog")
    assert ImageFolder(tmp_path / "fog" / "3").class_names == ("n01", "n02")


def test_classes_that_are_called_1_to_5_are_classes(tmp_path: Path) -> None:
    write_folder(tmp_path, {str(number): 1 for number in range(1, 6)})
    assert ImageFolder(tmp_path).num_classes == 5


@pytest.mark.parametrize("names", [["bee", "dog"], ["ant", "bee", "cat", "dog", "elk"], ["ant", "bee", "cat", "wolf"]])
def test_a_folder_beside_train_with_other_classes_has_to_be_told_its_numbers(tmp_path: Path, names: list[str]) -> None:
    train = write_folder(tmp_path / "train", dict.fromkeys(["ant", "bee", "cat", "dog"], 1))
    part = write_folder(tmp_path / "part", dict.fromkeys(names, 1))
    with pytest.raises(ClassesError, match=r"classes of the training folder beside it.*class_names="):
        ImageFolder(part)
    assert ImageFolder(part, class_names=sorted({"ant", "bee", "cat", "dog", *names})).num_classes >= 4
    if set(names) < {"ant", "bee", "cat", "dog"}:
        assert ImageFolder(part, class_names=train).labels.tolist() == [1, 3]


def test_numbers_as_names_that_sort_otherwise_are_warned_about(tmp_path: Path) -> None:
    write_folder(tmp_path, {str(number): 1 for number in range(11)})
    with pytest.warns(UserWarning, match=r"label 2 is the folder '10'"):
        data = ImageFolder(tmp_path)
    assert data.class_names[2] == "10"
    numbered = ImageFolder(tmp_path, class_names=[str(number) for number in range(11)])
    assert numbered.class_names == tuple(map(str, range(11)))
    assert {file.path.split("/")[0]: file.label for file in numbered.files} == {str(n): n for n in range(11)}


@pytest.mark.parametrize("padded", [False, True])
def test_folders_that_are_all_the_labels_are_taken_for_them(tmp_path: Path, padded: bool) -> None:
    root = write_folder(tmp_path, {f"{number:02d}" if padded else str(number): 1 for number in range(11)})
    data = ImageFolder(root, class_names=list("abcdefghijk"))
    assert {int(file.path.split("/")[0]): file.label for file in data.files} == {n: n for n in range(11)}
    with pytest.raises(DataError, match="no class of class_names"):  # 1 to 11, or some of 0 to 11?
        ImageFolder(root, class_names=list("abcdefghijkl"))
