"""Adversarial images of a run directory, picked to be looked at."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dcn_plugin.data import IndexedImages
from dcn_plugin.errors import SpecError
from dcn_plugin.evaluate.cache_keys import digest
from dcn_plugin.report.load import run_folders
from dcn_plugin.report.plots import ImageGrid
from dcn_plugin.support.number_format import number

__all__ = ["adversarial_grids"]

_log = logging.getLogger(__name__)


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
        names = dict(_source_names(folder))
        for described in sorted((folder / "sets").glob("*/key.json")):
            grid = _grid(described, names, data, count) if len(grids) < most else None
            if grid is not None:
                grids.append(grid)
    return sorted(grids, key=lambda grid: grid.title)


def _grid(described: Path, names: Mapping[str, str], data: IndexedImages | None, count: int) -> ImageGrid | None:
    key = _read_json(described)
    try:
        title, content = _title(key, names.get(described.parent.name)), key["data"]["content"]
    except (KeyError, TypeError, AttributeError) as error:
        _log.warning("%s is not shown: it says nothing of its images (%r)", described, error)
        return None
    at_hand = data if data is not None and content == data.content_hash else None
    places, found = _first_fooled(described.parent, count, known_only=at_hand is None)
    if not len(places):
        return None
    grid = ImageGrid(title, places.numpy(), found["images"].numpy())
    if "said" in found:
        grid = dataclasses.replace(grid, said=found["said"].numpy())
    if at_hand is not None:
        found |= {"clean": at_hand.take(places).float().cpu(), "labels": at_hand.labels.cpu()[places]}
    if "clean" in found:
        grid = dataclasses.replace(grid, clean=found["clean"].numpy(), labels=found["labels"].numpy())
    return grid


def _first_fooled(folder: Path, count: int, *, known_only: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Places int64 (K,), K <= ``count``, of fooled images, from as few batches as hold them, and what is kept of them.

    That is "images" (K, C, H, W) and, where the run kept them of every one, "clean", "labels" and "said"; with
    ``known_only`` no more images than it kept them of, if of any.
    """
    places: list[int] = []
    columns: dict[str, list[Tensor]] = {name: [] for name in ("images", "clean", "labels", "said")}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            batch, first = safetensors.torch.load_file(file), int(file.stem)
            rows = batch["fooled"].nonzero().flatten()[: count - len(places)].tolist()
            kept = len(batch.get("example_said", ()))
            rows = rows[:kept] if known_only and kept else rows
            images = [batch["images"][row] for row in rows]
        except (safetensors.SafetensorError, OSError, ValueError, LookupError) as error:
            _log.warning("%s is not shown: it cannot be read (%s)", file, error)
            continue
        places += [first + row for row in rows]
        columns["images"] += [image.float() / 255 if image.dtype == torch.uint8 else image.float() for image in images]
        # The examples of a batch are its first fooled images too.
        for name in ("clean", "labels", "said"):
            columns[name] += batch.get(f"example_{name}", torch.empty(0))[: len(rows)]
        if len(places) == count or (known_only and kept):
            break
    known = {name: torch.stack(column) for name, column in columns.items() if places and len(column) == len(places)}
    return torch.tensor(places, dtype=torch.int64), known


def _source_names(folder: Path) -> Iterator[tuple[str, str]]:
    """Digest of a set -> name of its source. Sets know the source's weights, the finished units its name."""
    for file in (folder / "units").glob("*.json"):
        key = _read_json(file).get("key")
        sets = [key, *(key.get("sets") or [])] if isinstance(key, dict) else []
        for one in sets:
            name = one.get("name") or one.get("source") or one.get("target")
            if one.get("set") and isinstance(name, str):
                yield digest(one["set"]), name


def _title(key: Mapping[str, Any], source: str | None) -> str:
    attack = str(key["attack"]["class"]).rpartition(".")[2]
    eps = key["attack"]["settings"].get("eps")
    parts = [attack + (f" on {source}" if source else "")]
    parts += [f"eps {number(eps)}"] if eps is not None else []
    parts += ["8-bit images"] if key["rounding"] == "8bit" else []
    return ", ".join(parts)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        _log.warning("%s is not shown: it cannot be read (%s)", file, error)
        return {}
