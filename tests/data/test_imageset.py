from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.data import ImageSet
from dcn_plugin.errors import DataError, ImageRangeError, LabelError, SpecError
from tests.toys import image_set


@given(count=st.integers(1, 30), batch_size=st.integers(1, 12), shuffled=st.booleans())
def test_batches_cover_every_image_exactly_once(count: int, batch_size: int, shuffled: bool) -> None:
    data = image_set(count)
    generator = torch.Generator().manual_seed(3) if shuffled else None
    batches = list(data.batches(batch_size, generator=generator))
    assert all(len(images) == len(labels) <= batch_size for images, labels in batches)
    seen = torch.cat([images for images, _ in batches]).flatten(1)
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, data.images.flatten(1).tolist()))


def test_an_image_keeps_its_label_when_shuffled() -> None:
    data = image_set(20)
    label_of = {
        tuple(image.flatten().tolist()): int(label) for image, label in zip(data.images, data.labels, strict=True)
    }
    for images, labels in data.batches(6, generator=torch.Generator().manual_seed(0)):
        assert [label_of[tuple(image.flatten().tolist())] for image in images] == labels.tolist()


def test_the_same_generator_seed_gives_the_same_order() -> None:
    data = image_set(20)
    first, second = (
        torch.cat([labels for _, labels in data.batches(6, generator=torch.Generator().manual_seed(5))])
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_a_smaller_last_batch_is_dropped_only_when_asked_and_never_the_only_one() -> None:
    assert [len(labels) for _, labels in image_set(10).batches(4)] == [4, 4, 2]
    assert [len(labels) for _, labels in image_set(10).batches(4, drop_last=True)] == [4, 4]
    assert [len(labels) for _, labels in image_set(3).batches(4, drop_last=True)] == [3]


def test_the_content_hash_sees_a_single_pixel_and_a_single_label_but_not_the_name() -> None:
    data = image_set(5)
    same = ImageSet(data.images.clone(), data.labels.clone(), 3, "other")
    pixels = data.images.clone()
    pixels[2, 0, 1, 1] = 1 - pixels[2, 0, 1, 1]
    labels = data.labels.clone()
    labels[0] = (labels[0] + 1) % 3
    assert data.content_hash == same.content_hash
    assert data.content_hash != ImageSet(pixels, data.labels, 3, "noise").content_hash
    assert data.content_hash != ImageSet(data.images, labels, 3, "noise").content_hash


def test_a_subset_is_a_copy_in_the_order_asked_for() -> None:
    data = image_set(6)
    part = data.subset(torch.tensor([4, 1]), name="part")
    assert torch.equal(part.images, data.images[[4, 1]])
    assert part.name == "part"
    part.images.zero_()
    assert data.images[4].any()


@pytest.mark.parametrize(
    ("images", "labels", "error"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), ImageRangeError),
        (torch.zeros(2, 4, 4), torch.zeros(2, dtype=torch.int64), ImageRangeError),
        (torch.full((2, 1, 4, 4), 1.01), torch.zeros(2, dtype=torch.int64), ImageRangeError),
        (torch.full((2, 1, 4, 4), float("nan")), torch.zeros(2, dtype=torch.int64), ImageRangeError),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64), DataError),
        (torch.zeros(2, 1, 4, 4), torch.zeros(2), LabelError),
        (torch.zeros(2, 1, 4, 4), torch.zeros(3, dtype=torch.int64), LabelError),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 3]), LabelError),
        (torch.zeros(2, 1, 4, 4), torch.tensor([-1, 0]), LabelError),
    ],
)
def test_bad_images_and_labels_are_refused_by_name(
    images: torch.Tensor, labels: torch.Tensor, error: type[Exception]
) -> None:
    with pytest.raises(error, match="'mine'"):
        ImageSet(images, labels, 3, "mine")


def test_a_batch_of_none_is_refused() -> None:
    with pytest.raises(SpecError, match="batch size"):
        next(image_set(3).batches(0))
