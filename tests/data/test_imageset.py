from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcn_plugin.data import ImageSet
from dcn_plugin.errors import DataError, ImageRangeError, LabelError, SpecError
from tests.toys import image_set


@given(count=st.integers(1, 30), batch_size=st.integers(1, 12))
def test_batches_are_the_whole_set_in_order(count: int, batch_size: int) -> None:
    data = image_set(count)
    batches = list(data.batches(batch_size))
    assert all(len(images) == len(labels) == batch_size for images, labels in batches[:-1])
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.equal(images, data.images) and torch.equal(labels, data.labels)


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
