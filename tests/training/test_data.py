from __future__ import annotations

from pathlib import Path

import pytest
import torch
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
    TrainData,
    isolated_rng,
    part_of,
    plan_epoch,
    split_off,
)
from dcn_plugin.training import data as module
from dcn_plugin.training.data import as_train_data
from tests.image_files import write_folder
from tests.toys import image_set

CPU = torch.device("cpu")


def eight_bit(count: int = 10, *, seed: int = 0) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 3, 6, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return ImageSet(pixels.float().div_(255), torch.arange(count) % 3, 3, "bytes")


def epoch(data: TrainData, *, seed: int = 0, batch_size: int = 4, shard: Shard | None = None) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return list(data.epoch(batch_size, generator=generator, device=CPU, shard=shard or Shard()))


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    return ImageFolder(write_folder(tmp_path / "photos", {"ant": 5, "bee": 4}, height=12, width=10), size=6)


def test_a_plan_takes_every_image_at_most_once_and_drops_a_smaller_last_batch() -> None:
    batches = plan_epoch(11, 4, generator=torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [4, 4]
    assert len(torch.cat(batches).unique()) == 8
    assert plan_epoch(3, 4, generator=torch.Generator())[0].sort().values.tolist() == [0, 1, 2]


def test_eight_bit_images_are_held_as_bytes_and_come_out_as_they_were() -> None:
    data = eight_bit()
    held = HeldImages(data)
    assert held._pixels.dtype == torch.uint8
    for batch in epoch(held):
        assert torch.equal(batch.images, data.images[batch.places])
        assert torch.equal(batch.labels, data.labels[batch.places])


def test_other_images_are_held_as_they_are() -> None:
    data = image_set(10)
    held = HeldImages(data)
    assert held._pixels.dtype == torch.float32
    assert all(torch.equal(batch.images, data.images[batch.places]) for batch in epoch(held))


def test_held_images_are_shifted_and_mirrored_by_the_generator_of_the_epoch() -> None:
    data = eight_bit()
    batches = epoch(HeldImages(data, shift=2, flip=True), seed=3)
    generator = torch.Generator().manual_seed(3)
    for batch, places in zip(batches, plan_epoch(10, 4, generator=generator), strict=True):
        moves = draw_moves(4, pixels=2, flip=True, generator=generator)
        assert torch.equal(batch.images, moves(data.images[places]))
        assert batch.moves is not None and torch.equal(batch.moves(data.images[places]), batch.images)


def test_the_shards_of_a_batch_are_the_batch_and_leave_the_generators_alike() -> None:
    data = HeldImages(eight_bit(), shift=1, flip=True)
    generators = [torch.Generator().manual_seed(1) for _ in range(3)]
    whole, *parts = (
        list(data.epoch(4, generator=generator, device=CPU, shard=shard))
        for generator, shard in zip(generators, (Shard(), Shard(0, 2), Shard(1, 2)), strict=True)
    )
    for batch, even, odd in zip(whole, *parts, strict=True):
        assert torch.equal(batch.images[0::2], even.images) and torch.equal(batch.images[1::2], odd.images)
        assert odd.moves is not None and batch.moves is not None
        assert torch.equal(odd.moves(odd.images), batch.moves(batch.images)[1::2])
        assert torch.equal(batch.labels[0::2], even.labels) and torch.equal(batch.places[1::2], odd.places)
    assert all(torch.equal(generator.get_state(), generators[0].get_state()) for generator in generators)


def test_a_fingerprint_notices_other_pixels_and_other_labels() -> None:
    data = eight_bit()
    labels = ImageSet(data.images, data.labels.flip(0), 3, "bytes")
    prints = {HeldImages(one).fingerprint for one in (data, eight_bit(seed=1), labels)}
    assert len(prints) == 3
    assert HeldImages(eight_bit()).fingerprint in prints


def test_too_many_images_to_hold_are_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOLD_AT_MOST", 100)
    with pytest.raises(SpecError, match="set min_scale"):
        HeldImages(eight_bit())


def test_a_folder_is_held_without_min_scale_and_streamed_with_it(folder: ImageFolder) -> None:
    held = as_train_data(folder, TrainConfig(shift=1))
    assert isinstance(held, HeldImages)
    whole = next(folder.batches(9))[0]
    assert all(torch.equal(batch.images, whole[batch.places]) for batch in epoch(HeldImages(folder)))
    assert isinstance(as_train_data(folder, TrainConfig(min_scale=0.5)), StreamedImages)
    assert as_train_data(held, TrainConfig()) is held
    with pytest.raises(SpecError, match="image files"):
        as_train_data(eight_bit(), TrainConfig(min_scale=0.5))


def test_streamed_images_are_torchvisions_random_crops_of_the_files(folder: ImageFolder) -> None:
    before = torch.get_rng_state()
    batches = epoch(StreamedImages(folder, min_scale=0.3, flip=True, workers=0), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    generator = torch.Generator().manual_seed(5)
    plan = plan_epoch(9, 4, generator=generator)
    seeds = torch.randint(2**62, (9,), generator=generator)
    transform = v2.Compose([v2.RandomResizedCrop(6, scale=(0.3, 1)), v2.RandomHorizontalFlip()])
    for batch, places in zip(batches, plan, strict=True):
        assert batch.images.shape == (4, 3, 6, 6)
        assert torch.equal(batch.labels, folder.labels[places])
        for image, place in zip(batch.images, places.tolist(), strict=True):
            with isolated_rng(int(seeds[place])):
                expected = transform(decode(folder.root / folder.files[place].path, EvalTransform()))
            assert torch.equal(image, expected / 255)


def test_workers_give_the_same_crops_in_every_epoch(folder: ImageFolder) -> None:
    before = torch.get_rng_state()
    here, there = (StreamedImages(folder, min_scale=0.3, workers=workers) for workers in (0, 1))
    one, two = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    for _ in range(2):
        mine = list(here.epoch(4, generator=one, device=CPU, shard=Shard()))
        theirs = list(there.epoch(4, generator=two, device=CPU, shard=Shard()))
        assert all(torch.equal(a.images, b.images) for a, b in zip(mine, theirs, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_streamed_fingerprint_notices_another_file(folder: ImageFolder) -> None:
    before = StreamedImages(folder, min_scale=0.5).fingerprint
    assert StreamedImages(folder, min_scale=0.5).fingerprint == before
    (folder.root / folder.files[0].path).write_bytes(b"shorter")
    assert StreamedImages(folder, min_scale=0.5).fingerprint != before


def test_a_split_takes_its_share_of_every_class_and_no_image_twice(folder: ImageFolder) -> None:
    data = image_set(60)
    train, val = split_off(data, 0.2, seed=1)
    counts = data.labels.bincount()
    assert val.labels.bincount().tolist() == [round(0.2 * count) for count in counts.tolist()]
    together = torch.cat([train.take(torch.arange(len(train))), val.take(torch.arange(len(val)))])
    assert sorted(map(tuple, together.flatten(1).tolist())) == sorted(map(tuple, data.images.flatten(1).tolist()))
    again, other = split_off(data, 0.2, seed=1)[1], split_off(data, 0.2, seed=2)[1]
    assert isinstance(val, ImageSet) and isinstance(again, ImageSet) and isinstance(other, ImageSet)
    assert torch.equal(val.images, again.images) and not torch.equal(val.images, other.images)
    some, rest = split_off(folder, 0.3)
    assert (len(some), len(rest)) == (6, 3)


@pytest.mark.parametrize("share", [0, 1, 0.001])
def test_a_share_that_leaves_nothing_is_refused(share: float) -> None:
    with pytest.raises(SpecError, match="validation share"):
        split_off(image_set(30), share)


def test_a_part_of_a_folder_has_its_images_in_the_order_asked_for(folder: ImageFolder) -> None:
    part = part_of(folder, torch.tensor([7, 0]), name="two")
    assert (part.name, part.labels.tolist()) == ("two", [1, 0])
    assert torch.equal(part.take(torch.arange(2)), folder.take(torch.tensor([7, 0])))
