from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dcn_plugin.attacks import PGD
from dcn_plugin.data import ImageSet
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate import RunDirectory, transfer
from dcn_plugin.report import adversarial_grids, grid_png
from tests.toys import linear_model

EPS = 64 / 255


def linear(seed: int) -> nn.Module:
    return linear_model(48, seed=seed)


@pytest.fixture(scope="module")
def data() -> ImageSet:
    images = torch.rand(20, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, linear(0)(images).argmax(dim=1), 3, "toy")


@pytest.fixture(scope="module")
def run(data: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    attacks = [PGD(EPS, steps=5), PGD(EPS / 1000, steps=1)]
    list(
        transfer(
            {"linear": linear(0)}, {"other": linear(1)}, attacks, data, training_seed=0, rounding="8bit", batch_size=4,
            store=RunDirectory(folder),
        )
    )  # fmt: skip
    return folder


def test_the_first_fooled_images_are_shown_beside_the_clean_ones(run: Path, data: ImageSet) -> None:
    (grid,) = adversarial_grids(run, data, count=6)  # the weak attack fools nobody and is passed over
    assert grid.title == "PGD on linear, eps 64/255, 8-bit images"
    assert len(grid.indices) == 6
    assert grid.clean is not None
    assert grid.labels is not None
    said = linear(0)(torch.from_numpy(grid.adversarial)).argmax(dim=1)
    assert (said.numpy() != grid.labels).all()
    assert np.array_equal(grid.clean, data.images[torch.from_numpy(grid.indices)].numpy())
    assert np.abs(grid.adversarial - grid.clean).max() <= EPS + 0.5 / 255 + 1e-6
    assert list(grid.indices) == sorted(grid.indices)


def test_the_difference_is_amplified_around_grey(run: Path, data: ImageSet) -> None:
    (grid,) = adversarial_grids(run, data)
    assert grid.clean is not None
    difference = grid.rows["difference × 10"]
    raised = grid.adversarial > grid.clean + 0.06
    assert raised.any()
    assert (difference[raised] == 1).all()
    assert (difference[grid.adversarial == grid.clean] == 0.5).all()


def test_a_run_keeps_what_its_first_examples_were_and_what_the_source_says(run: Path, data: ImageSet) -> None:
    others = ImageSet(data.images.flip(0), data.labels, 3, "others")
    for clean in (None, others, data):
        (grid,) = adversarial_grids(run, clean, count=2)
        assert list(grid.rows) == ["clean", "adversarial", "difference × 10"]
        places = torch.from_numpy(grid.indices)
        assert grid.clean is not None
        assert grid.labels is not None
        assert grid.said is not None
        assert np.array_equal(grid.clean, data.images[places].numpy())
        assert np.array_equal(grid.labels, data.labels[places].numpy())
        assert np.array_equal(grid.said, linear(0)(torch.from_numpy(grid.adversarial)).argmax(dim=1).numpy())
        assert (grid.said != grid.labels).all()
    # The first batch is one of 4 images; with the data at hand there are more.
    assert len(adversarial_grids(run, count=6)[0].indices) <= 4
    assert adversarial_grids(run, data, count=6)[0].said is None


def test_without_clean_images_the_adversarial_ones_stand_alone(run: Path, data: ImageSet, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("sets/*/*0.safetensors"):  # as an earlier version wrote them
        kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("example")}
        save_file(kept, file)
    (grid,) = adversarial_grids(tmp_path, count=5)
    assert list(grid.rows) == ["adversarial"]
    assert len(grid.indices) == 5
    assert grid.labels is None
    assert "clean" in adversarial_grids(tmp_path, data, count=5)[0].rows


def test_a_grid_is_a_picture(run: Path, data: ImageSet) -> None:
    for clean in (None, data):
        (grid,) = adversarial_grids(run, clean, count=2)
        assert grid_png(grid).startswith(b"\x89PNG")


def test_a_run_without_images_has_no_grids(tmp_path: Path) -> None:
    assert adversarial_grids(tmp_path) == []


def test_a_damaged_batch_is_passed_over(
    run: Path, data: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (grid,) = adversarial_grids(run, data, count=1)
    for key in (run / "sets").glob("*/key.json"):
        copy = tmp_path / "sets" / key.parent.name
        copy.mkdir(parents=True)
        for file in key.parent.iterdir():
            whole = file.read_bytes()
            (copy / file.name).write_bytes(whole[:20] if file.stem == "0000000000" else whole)
    (tmp_path / "units").symlink_to(run / "units")
    (rest,) = adversarial_grids(tmp_path, data, count=1)
    assert int(grid.indices[0]) < 4 <= int(rest.indices[0])
    assert "is left out" in caplog.text


def test_no_images_at_all_is_not_a_request(run: Path) -> None:
    with pytest.raises(SpecError):
        adversarial_grids(run, count=0)


def test_an_older_folder_without_names_is_shown_under_its_attack_alone(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.glob("sets/*/about.json"):
        file.unlink()
    (grid,) = adversarial_grids(tmp_path, count=1)
    assert grid.title == "PGD, eps 64/255, 8-bit images"
