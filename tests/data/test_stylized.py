from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dcn_plugin.data import CUE_CLASSES, CueConflict, paired_folders
from dcn_plugin.errors import DataError
from tests.image_files import pixels, write_folder, write_image


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Originals named .JPEG, and as stylised image of each a grey one whose value is its index."""
    original, stylized = tmp_path / "val", tmp_path / "stylized"
    index = 0
    for name, stems in {"n01": ("ILSVRC_2", "ILSVRC_10", "ILSVRC_1"), "n02": ("ILSVRC_2",)}.items():
        for stem in sorted(stems):
            write_image(original / name / f"{stem}.JPEG", pixels(12, 10, seed=index))
            write_image(stylized / name / f"{stem}.png", pixels(8, 8) * 0 + index)
            index += 1
    return original, stylized


def test_both_folders_come_in_the_same_order_with_the_same_labels(pair: tuple[Path, Path]) -> None:
    plain, styled = paired_folders(*pair, size=8, resize=9)
    assert [file.path[:-5] for file in plain.files] == [file.path[:-4] for file in styled.files]
    assert plain.labels.tolist() == styled.labels.tolist() == [0, 0, 0, 1]
    assert (styled.take(torch.arange(4))[:, 0, 0, 0] * 255).tolist() == [0, 1, 2, 3]
    assert plain.shape == styled.shape == (3, 8, 8)
    assert (plain.name, styled.name) == ("val", "stylized")


def test_the_stylised_images_are_not_cut_a_second_time(pair: tuple[Path, Path]) -> None:
    pattern = pixels(8, 8, seed=5)
    write_image(pair[1] / "n01" / "ILSVRC_1.png", pattern)
    _, styled = paired_folders(*pair, size=8, resize=9)
    assert torch.equal((styled.take(torch.tensor([0]))[0] * 255).byte(), torch.from_numpy(pattern).permute(2, 0, 1))
    _, cut = paired_folders(*pair, size=8, resize=9, stylized_resize=9)
    assert not torch.equal(cut.take(torch.tensor([0])), styled.take(torch.tensor([0])))


def test_the_names_of_stylize_datasets_are_understood(pair: tuple[Path, Path]) -> None:
    original, stylized = pair
    path = stylized / "n01" / "ILSVRC_10.png"
    path.rename(path.with_name("ILSVRC_10-stylized-1234.JPEG"))
    plain, styled = paired_folders(original, stylized, size=8)
    assert [file.path for file in styled.files][1] == "n01/ILSVRC_10-stylized-1234.JPEG"
    write_image(stylized / "n01" / "ILSVRC_10-stylized-77.png", pixels())
    with pytest.raises(DataError, match=r"Two images.*stand for one picture"):
        paired_folders(original, stylized, size=8)
    assert len(plain) == 4


@pytest.mark.parametrize(("side", "word"), [(0, "stylized"), (1, "val")])
def test_an_image_without_its_twin_is_named(pair: tuple[Path, Path], side: int, word: str) -> None:
    write_image(pair[side] / "n02" / "alone.png", pixels())
    with pytest.raises(DataError, match=rf"1 images of .* have no counterpart in .*{word}.*n02/alone\.png"):
        paired_folders(*pair, size=8)


def test_a_class_of_the_stylised_side_alone_is_named(pair: tuple[Path, Path]) -> None:
    write_image(pair[1] / "n03" / "1.png", pixels())
    with pytest.raises(DataError, match="n03"):
        paired_folders(*pair, size=8)


def test_a_limit_takes_the_same_images_of_both(pair: tuple[Path, Path]) -> None:
    plain, styled = paired_folders(*pair, size=8, limit=2)
    assert [file.path for file in plain.files] == ["n01/ILSVRC_1.JPEG", "n01/ILSVRC_2.JPEG"]
    assert [file.path for file in styled.files] == ["n01/ILSVRC_1.png", "n01/ILSVRC_2.png"]


@pytest.fixture
def cues(tmp_path: Path) -> Path:
    root = tmp_path / "cue-conflict"
    for name in ("airplane1-bicycle2", "airplane10-truck3", "airplane4-airplane1", "0001_cc_00_airplane2-bear1"):
        write_image(root / "airplane" / f"{name}.png", pixels())
    write_image(root / "truck" / "truck2-airplane1.png", pixels())
    return root


def test_shape_and_texture_are_read_off_the_name_and_images_without_conflict_left_out(cues: Path) -> None:
    data = CueConflict(cues)
    assert len(CUE_CLASSES) == data.num_classes == 16
    named = [
        (data.class_names[shape], data.class_names[texture])
        for shape, texture in zip(data.labels, data.texture_labels, strict=True)
    ]
    assert named == [
        ("airplane", "bear"),
        ("airplane", "bicycle"),
        ("airplane", "truck"),
        ("truck", "airplane"),
    ]
    assert data.skipped == 1
    assert [labels.tolist() for _, labels in data.batches(3)] == [[0, 0, 0], [15]]


def test_a_limit_cuts_the_texture_labels_too(cues: Path) -> None:
    data = CueConflict(cues, limit=2)
    assert [file.path for file in data.files] == [
        "airplane/0001_cc_00_airplane2-bear1.png",
        "airplane/airplane10-truck3.png",
    ]
    assert data.texture_labels.tolist() == [CUE_CLASSES.index("bear"), CUE_CLASSES.index("truck")]


@pytest.mark.parametrize(
    "path",
    ["airplane/airplane1.png", "airplane/plane1-bear2.png", "airplane/airplane1-zebra2.png", "bear/cat1-dog2.png"],
)
def test_a_name_that_does_not_parse_is_named(cues: Path, path: str) -> None:
    write_image(cues / path, pixels())
    with pytest.raises(DataError, match=rf"{Path(path).name} does not say its shape and texture"):
        CueConflict(cues)


def test_nothing_but_images_without_conflict_is_an_error(tmp_path: Path) -> None:
    write_image(tmp_path / "cat" / "cat1-cat2.png", pixels())
    with pytest.raises(DataError, match="of two classes"):
        CueConflict(tmp_path)


def test_other_classes_can_be_named(tmp_path: Path) -> None:
    write_image(tmp_path / "zebra" / "zebra1-ant2.png", pixels())
    data = CueConflict(tmp_path, class_names=["ant", "zebra"])
    assert (data.labels.tolist(), data.texture_labels.tolist()) == ([1], [0])


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such image folder"):
        CueConflict(tmp_path / "missing")
    with pytest.raises(DataError, match="no such image folder"):
        paired_folders(write_folder(tmp_path / "a", {"x": 1}), tmp_path / "missing")
