from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dcn_plugin.data import CueConflict, ImageFolder, IndexedImages
from dcn_plugin.errors import SpecError
from tests.image_files import pixels, write_folder, write_image
from tests.toys import image_set


def sources(tmp_path: Path) -> list[IndexedImages]:
    """One of each kind, so that a type checker compares them with the protocol too."""
    write_image(tmp_path / "cues" / "cat" / "cat1-dog2.png", pixels())
    return [
        image_set(7),
        ImageFolder(write_folder(tmp_path / "folder", {"a": 4, "b": 3})),
        CueConflict(tmp_path / "cues"),
    ]


def test_every_source_keeps_what_the_protocol_promises(tmp_path: Path) -> None:
    for data in sources(tmp_path):
        batches = list(data.batches(3))
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.shape == (len(data), *data.shape)
        assert 0 <= images.min() <= images.max() <= 1
        assert all(len(part) == 3 for part, _ in batches[:-1])
        assert torch.equal(labels, data.labels)
        assert labels.max() < data.num_classes
        assert torch.equal(data.take(torch.tensor([len(data) - 1, 0])), images[[-1, 0]])
        assert torch.equal(torch.cat([again for again, _ in data.batches(2)]), images)
        assert len(data.content_hash) == 64
        assert data.name
        with pytest.raises(SpecError, match="batch size"):
            next(data.batches(0))
