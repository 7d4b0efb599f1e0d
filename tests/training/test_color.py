from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, nn
from torchvision.transforms import v2

from dcn_plugin.data import EvalTransform, ImageFolder, ImageSet
from dcn_plugin.data.augment import draw_moves
from dcn_plugin.data.decode import decode
from dcn_plugin.errors import SpecError
from dcn_plugin.training import (
    Batch,
    HeldImages,
    Shard,
    StreamedImages,
    TrainConfig,
    isolated_rng,
    plan_epoch,
    pubdef,
    train,
)
from dcn_plugin.training.color import EIGENVALUES, EIGENVECTORS, draw_colors, shift_colors
from dcn_plugin.training.data import as_train_data
from tests.image_files import write_folder
from tests.toys import image_set

CPU = torch.device("cpu")
DATA = image_set(20, shape=(3, 6, 6))


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    return ImageFolder(write_folder(tmp_path / "photos", {"ant": 5, "bee": 4}, height=12, width=10), size=6)


def by_hand(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Krizhevsky's formula, pixel by pixel, on one image (3, H, W) in float64."""
    made = image.astype(np.float64)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            for axis in range(3):
                direction = np.array([EIGENVECTORS[color][axis] for color in range(3)])
                made[:, y, x] += factors[axis] * EIGENVALUES[axis] * direction
    return made.clip(0, 1)


def test_one_image_is_shifted_as_the_formula_says() -> None:
    (image, *_), std = DATA.images, 2.0
    colors = draw_colors(1, std=std, generator=Generator().manual_seed(3))
    factors = std * torch.randn(1, 3, generator=Generator().manual_seed(3))[0].double().numpy()
    made = shift_colors(image[None], colors)[0]
    expected = by_hand(image.numpy(), factors)
    np.testing.assert_allclose(made.numpy(), expected, atol=1e-6)
    assert np.abs(expected - image.numpy()).max() > 0.1 and made.min() >= 0 and made.max() <= 1


def test_the_axes_are_orthonormal_and_the_first_is_brightness() -> None:
    axes = np.array(EIGENVECTORS)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-3)
    assert np.ptp(axes[:, 0]) < 0.02
    assert list(EIGENVALUES) == sorted(EIGENVALUES, reverse=True)


def test_the_shifts_have_the_spread_that_was_asked_for() -> None:
    colors = draw_colors(20_000, std=0.1, generator=Generator().manual_seed(0)).double().numpy()
    along = colors @ np.array(EIGENVECTORS)
    np.testing.assert_allclose(along.std(axis=0), 0.1 * np.array(EIGENVALUES), rtol=0.03)
    np.testing.assert_allclose(along.mean(axis=0), 0, atol=1e-3)


def test_held_images_are_moved_and_then_shifted_by_the_generator_of_the_epoch() -> None:
    generator = Generator().manual_seed(5)
    batches = list(
        HeldImages(DATA, shift=1, flip=True, pca_color=0.5).epoch(8, generator=generator, device=CPU, shard=Shard())
    )
    mine = Generator().manual_seed(5)
    for batch, places in zip(batches, plan_epoch(20, 8, generator=mine), strict=True):
        moves = draw_moves(8, pixels=1, flip=True, generator=mine)
        expected = shift_colors(moves(DATA.images[places]), draw_colors(8, std=0.5, generator=mine))
        assert torch.equal(batch.images, expected)
        assert not torch.equal(batch.images, moves(DATA.images[places]))
        assert batch.moves is None
    assert torch.equal(generator.get_state(), mine.get_state())


def test_images_on_eight_bits_are_shifted_as_numbers() -> None:
    pixels = torch.randint(0, 256, (8, 3, 4, 4), generator=Generator().manual_seed(1), dtype=torch.uint8)
    data = ImageSet(pixels.float() / 255, torch.arange(8) % 2, 2, "bytes")
    generator = Generator().manual_seed(0)
    (batch,) = HeldImages(data, pca_color=0.1).epoch(8, generator=generator, device=CPU, shard=Shard())
    change = batch.images - data.images[batch.places]
    assert 0 < change.abs().max() < 0.2
    # Not rounded: a shift is smaller than a grey level as a rule.
    assert not torch.equal((batch.images * 255).round() / 255, batch.images)


def test_streamed_images_are_cropped_and_then_shifted(folder: ImageFolder) -> None:
    stream = StreamedImages(folder, min_scale=0.3, flip=True, pca_color=0.5, workers=0)
    batches = list(stream.epoch(4, generator=Generator().manual_seed(5), device=CPU, shard=Shard()))
    mine = Generator().manual_seed(5)
    plan = plan_epoch(9, 4, generator=mine)
    seeds = torch.randint(2**62, (9,), generator=mine)
    colors = draw_colors(9, std=0.5, generator=mine)
    crop = v2.Compose([v2.RandomResizedCrop(6, scale=(0.3, 1)), v2.RandomHorizontalFlip()])
    for batch, places in zip(batches, plan, strict=True):
        for image, place in zip(batch.images, places.tolist(), strict=True):
            with isolated_rng(int(seeds[place])):
                cut = crop(decode(folder.root / folder.files[place].path, EvalTransform()))
            assert torch.equal(image, shift_colors(cut[None] / 255, colors[place][None])[0])


def test_the_shards_of_a_batch_are_the_batch(folder: ImageFolder) -> None:
    for data in (
        HeldImages(DATA, pca_color=0.2),
        StreamedImages(folder, min_scale=0.5, pca_color=0.2, workers=0),
    ):
        whole, even, odd = (
            list(data.epoch(4, generator=Generator().manual_seed(1), device=CPU, shard=shard))
            for shard in (Shard(), Shard(0, 2), Shard(1, 2))
        )
        for batch, first, second in zip(whole, even, odd, strict=True):
            assert torch.equal(batch.images[0::2], first.images)
            assert torch.equal(batch.images[1::2], second.images)


class Stop(Exception):
    pass


def test_a_run_that_was_stopped_ends_bit_equal(tmp_path: Path) -> None:
    config = TrainConfig(epochs=3, batch_size=8, lr=0.05, shift=1, pca_color=0.1)
    left = 3

    class Hook:
        def __repr__(self) -> str:
            return "Hook()"

        def __call__(self, model: nn.Module, batch: Batch, generator: Generator) -> Batch:
            nonlocal left
            left -= 1
            if left == 0:
                raise Stop
            return batch

    def run(name: str) -> nn.Module:
        with isolated_rng(0):
            net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
        train(net, DATA, config, out=tmp_path / name, step_images=Hook())
        return net

    with pytest.raises(Stop):
        run("stopped")
    stopped, alone = run("stopped"), run("alone")
    for name, value in alone.state_dict().items():
        assert torch.equal(stopped.state_dict()[name], value), name


def test_the_configuration_reaches_both_kinds_of_data(folder: ImageFolder) -> None:
    held = as_train_data(DATA, TrainConfig(pca_color=0.1))
    streamed = as_train_data(folder, TrainConfig(pca_color=0.1, min_scale=0.5))
    assert isinstance(held, HeldImages) and isinstance(streamed, StreamedImages)
    assert held.pca_color == streamed.pca_color == 0.1


def test_grey_images_have_no_colours_to_shift() -> None:
    grey = image_set(8, shape=(1, 4, 4))
    with pytest.raises(SpecError, match="pca_color"):
        HeldImages(grey, pca_color=0.1)
    assert len(HeldImages(grey)) == 8


def test_pubdef_cannot_repeat_shifted_colours_and_says_so() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    hook = pubdef([(DATA.images * 255).byte()])
    with pytest.raises(SpecError, match="pca_color=0"):
        train(net, DATA, TrainConfig(epochs=1, batch_size=8, pca_color=0.1), step_images=hook)
