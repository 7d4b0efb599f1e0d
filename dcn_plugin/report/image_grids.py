"""Adversarial images of a run directory, picked to be looked at."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from dcn_plugin.data import IndexedImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.run_directory import StoredSet, run_folders, stored_sets
from dcn_plugin.report.plots import ImageGrid
from dcn_plugin.support.number_format import number

__all__ = ["adversarial_grids"]


def adversarial_grids(
    path: str | os.PathLike[str], data: IndexedImages | None = None, *, count: int = 6, most: int = 12
) -> list[ImageGrid]:
    """The first images of each adversarial set that fooled their source.

    Args:
        path: as in :func:`load_run`; where no sets are kept, the result is empty.
        data: the clean images. They are shown beside those adversarial images that were made from them, known by
            the hash of their content. Without them up to six of the first batch are shown, of which a run keeps the
            clean image, its class, and what the source says.
        count: images a set.
        most: sets; sets in which no image fooled the source are passed over.

    Raises:
        SpecError: ``count`` or ``most`` is below 1.
    """
    if count < 1 or most < 1:
        raise SpecError("The number of images or sets is not usable.", (count, most), "ints >= 1")
    where = Path(path)
    grids: list[ImageGrid] = []
    for folder in run_folders(where.parent if where.is_file() else where):
        for images in stored_sets(folder):
            grid = _grid(images, data, count) if len(grids) < most else None
            if grid is not None:
                grids.append(grid)
    return sorted(grids, key=lambda grid: grid.title)


def _grid(images: StoredSet, data: IndexedImages | None, count: int) -> ImageGrid | None:
    clean = data if data is not None and images.data_hash == data.content_hash else None
    places, columns = _first_fooled(images, count, examples_only=clean is None)
    if not len(places):
        return None
    if clean is not None:
        columns |= {"clean": clean.take(places).float().cpu(), "labels": clean.labels.cpu()[places]}
    arrays = {name: column.numpy() for name, column in columns.items()}
    more = (arrays.get(name) for name in ("clean", "labels", "said"))
    return ImageGrid(_title(images), places.numpy(), arrays["images"], *more)


def _first_fooled(images: StoredSet, count: int, *, examples_only: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Places int64 (K,), K <= ``count``, of fooled images, from as few batches as hold them, and their columns.

    These are "images" (K, C, H, W) and, where the run kept them of every image, "clean", "labels" and "said"; with
    ``examples_only`` no more images than it kept them of, if of any.
    """
    places: list[int] = []
    columns: dict[str, list[Tensor]] = {name: [] for name in ("images", "clean", "labels", "said")}
    for batch in images.batches():
        rows = batch.fooled.nonzero().flatten()[: count - len(places)].tolist()
        examples = len(batch.examples.get("said", ()))
        rows = rows[:examples] if examples_only and examples else rows
        places += [batch.first + row for row in rows]
        scale = 255 if batch.images.dtype == torch.uint8 else 1
        columns["images"] += [batch.images[row].float() / scale for row in rows]
        # The examples of a batch are its first fooled images too.
        for name in ("clean", "labels", "said"):
            columns[name] += batch.examples.get(name, torch.empty(0))[: len(rows)]
        if len(places) == count or (examples_only and examples):
            break
    full = {name: torch.stack(column) for name, column in columns.items() if places and len(column) == len(places)}
    return torch.tensor(places, dtype=torch.int64), full


def _title(images: StoredSet) -> str:
    parts = [images.attack + (f" on {images.source}" if images.source else "")]
    parts += [f"eps {number(images.eps)}"] if images.eps is not None else []
    parts += ["8-bit images"] if images.rounding == "8bit" else []
    return ", ".join(parts)
