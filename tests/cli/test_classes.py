"""Class names on the command line: from the training images to the network, its file, and other images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dcn_plugin import cli, training
from dcn_plugin.checkpoint.class_names import class_names_in, class_names_of
from dcn_plugin.cli.models import open_model
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import ResultFile
from tests.cli.test_train import HERE
from tests.data.test_formats import medmnist
from tests.shades import NAMES, shaded_folder

SHADE = "tests.shades:shade"
QUIET = ["--no-progress", "--batch-size", "8"]


def right(out: Path, protocol: str, *arguments: str) -> float:
    """Share of the clean images that the target has right."""
    assert cli.main(["evaluate", protocol, *arguments, "--out", str(out), *QUIET]) == 0
    result = ResultFile.read(out / "results.json").results[0]
    assert result.n_clean_correct is not None
    return result.n_clean_correct / result.n_total


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder ``train`` of all classes and one, ``part``, of two of them."""
    shaded_folder(tmp_path / "train")
    shaded_folder(tmp_path / "part", ["bee", "dog"])
    return tmp_path


@pytest.mark.parametrize("where", ["of the model", "of the images", "of the images, listed"])
def test_some_of_the_classes_are_measured_right_once_they_are_named(root: Path, where: str) -> None:
    model, data = {
        "of the model": (f"{SHADE},class_names={root / 'train'}", f"folder:{root / 'part'}"),
        "of the images": (SHADE, f"folder:{root / 'part'},class_names={root / 'train'}"),
        "of the images, listed": (SHADE, f"folder:{root / 'part'},class_names={','.join(NAMES)}"),
    }[where]
    assert right(root / "run", "gaussian", "--target", f"a={model}", "--data", data, "--level", "0.01") == 1


def test_some_of_the_classes_are_refused_where_nobody_names_them(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lone = shaded_folder(root / "alone" / "part", ["bee", "dog"])
    for data in (root / "part", lone):
        arguments = ["--target", f"a={SHADE}", "--data", f"folder:{data}", "--out", str(root / "run")]
        assert cli.main(["evaluate", "gaussian", *arguments]) != 0
        assert "class_names=" in capsys.readouterr().err


def test_folders_that_the_network_does_not_know_are_refused_with_the_way_on(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = root / "names.txt"
    names.write_text("Ant\nBee\nCat\nDog")
    arguments = ["--data", f"folder:{root / 'train'}", "--out", str(root / "run")]
    assert cli.main(["evaluate", "gaussian", "--target", f"a={SHADE},class_names={names}", *arguments]) != 0
    assert "MODEL,class_names=" in capsys.readouterr().err
    target = ["--target", f"a={SHADE},class_names={root / 'train'}", "--data", f"folder:{root / 'train'}"]
    assert right(root / "run", "gaussian", *target, "--level", "0.01") == 1


def test_stylized_folders_take_class_names_and_channels(root: Path) -> None:
    data = f"{root / 'part'},channels=1,class_names={root / 'train'}"
    arguments = ["--target", "a=tests.shades:grey_shade", "--data", data, "--stylized", str(root / "part")]
    assert right(root / "run", "stylized", *arguments) == 1


@pytest.mark.parametrize("data", ["folder", "npz"])
def test_grey_images_are_an_option_of_the_data(root: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    spec = f"folder:{root / 'train'}"
    if data == "npz":
        images = np.repeat(np.uint8([20, 90, 160, 230])[:, None, None, None], 8 * 8 * 3, axis=1).reshape(4, 8, 8, 3)
        np.savez(root / "a.npz", images=images, labels=np.arange(4, dtype=np.uint8)[:, None])
        spec = f"npz:{root / 'a.npz'}"
    target = ["--target", "a=tests.shades:grey_shade", "--level", "0.01"]
    assert cli.main(["evaluate", "gaussian", *target, "--data", spec, "--out", str(root / "run")]) != 0
    assert "channels=1" in capsys.readouterr().err
    assert right(root / "run", "gaussian", *target, "--data", f"{spec},channels=1") == 1


def test_validation_images_are_numbered_as_the_training_images_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def watch(model: Any, data: Any, config: Any, **options: Any) -> Any:
        seen.update(options, train=data)
        raise SpecError("That is enough.")

    monkeypatch.setattr(training, "train", watch)
    folders = ["--data", f"folder:{root / 'train'},channels=1", "--val", f"folder:{root / 'part'},channels=1"]
    assert cli.main(["train", "tests.cli.test_classes:network", *folders, "--out", str(root / "run")]) != 0
    assert seen["val"].labels.tolist() == [1, 1, 3, 3]
    assert (seen["train"].shape, seen["val"].num_classes) == ((1, 8, 8), 4)


@pytest.mark.parametrize(
    ("data", "val", "test"),
    [
        ("medmnist", [1, 0], [1, 0, 1]),  # its own parts
        ("digits:train", None, None),  # named by the text itself: it is no test set of its own training
    ],
)
def test_training_is_measured_on_the_parts_that_the_data_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, val: list[int] | None, test: list[int] | None
) -> None:
    seen: dict[str, Any] = {}

    def watch(model: Any, images: Any, config: Any, **options: Any) -> Any:
        seen.update(options)
        raise SpecError("That is enough.")

    monkeypatch.setattr(training, "train", watch)
    spec = f"npz:{medmnist(tmp_path / 'a.npz')}" if data == "medmnist" else data
    model = "tests.cli.test_classes:network" + (",classes=3" if data == "medmnist" else ",classes=10")
    assert cli.main(["train", model, "--data", spec, "--out", str(tmp_path / "run")]) != 0
    assert val is None or seen["val"].labels.tolist() == val
    assert (None if seen["test"] is None else seen["test"].labels.tolist()) == test


def network(classes: int = 4) -> Any:
    from dcn_plugin.models import cifar_resnet

    return cifar_resnet((1, 1, 1, 1), num_classes=classes, in_chans=1, width=4)


def test_validation_images_of_strange_classes_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ant", "bee", "cat"):
        (root / "other" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).rename(root / "other" / name)
    (root / "train" / "dog").rename(root / "other" / "wolf")
    shaded_folder(root / "train")
    folders = ["--data", f"folder:{root / 'train'},channels=1", "--val", f"folder:{root / 'other'},channels=1"]
    assert cli.main(["train", "tests.cli.test_classes:network", *folders, "--out", str(root / "run")]) != 0
    assert "wolf" in capsys.readouterr().err


@pytest.mark.parametrize("model", [f"{HERE}:small,p=0.5", f"{HERE}:small"])
def test_a_trained_network_knows_its_classes_and_some_of_them_are_measured_right(
    root: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """``small`` has ten logits, so that six of the names are of classes without an image."""
    names = root / "names.txt"
    names.write_text("\n".join([*NAMES, *"efghij"]))
    data = f"folder:{root / 'train'},channels=1,class_names={names}"
    fast = ["--epochs", "1", "--batch-size", "4", "--val-share", "0", "--no-progress"]
    assert cli.main(["train", model, "--data", data, "--out", str(root / "net"), *fast]) == 0
    assert class_names_in(root / "net" / "last.safetensors") == (*NAMES, *"efghij")
    line = next(line for line in capsys.readouterr().out.splitlines() if "--target" in line)
    reopened = line.partition("NAME=")[2].strip()
    assert class_names_of(open_model(reopened, tell=lambda _: None)) == (*NAMES, *"efghij")
    target = ["--target", f"a={reopened}", "--data", f"folder:{root / 'part'},channels=1", "--level", "0.01"]
    assert cli.main(["evaluate", "gaussian", *target, "--out", str(root / "run"), *QUIET]) == 0
