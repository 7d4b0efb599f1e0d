"""Folders of small image files for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dcn_plugin.data import LabelledImages


def pixels(height: int = 8, width: int = 8, *, seed: int = 0, channels: int = 3) -> np.ndarray:
    """uint8 (H, W, C), or (H, W) for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.Generator(np.random.Philox(seed)).integers(0, 256, shape, dtype=np.uint8)


def write_image(path: Path, array: np.ndarray) -> Path:
    """Write one image, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_folder(root: Path, counts: Mapping[str, int], *, height: int = 8, width: int = 8) -> Path:
    """Write root/<class>/<number>.png, each image of other pixels."""
    seed = 0
    for name, count in counts.items():
        for number in range(count):
            write_image(root / name / f"{number}.png", pixels(height, width, seed=seed))
            seed += 1
    return root


def everything(data: LabelledImages, batch_size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a set, and all labels."""
    batches = list(data.batches(batch_size))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])
