"""A few images to look at: clean, attacked, and what each network predicted; kept in one .npz file."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dcn_plugin.errors import RecordError
from dcn_plugin.support.atomic_file import write_atomic

__all__ = ["ExampleRow", "Examples"]


@dataclass(frozen=True, eq=False)
class ExampleRow:
    """The same K images in one state.

    Args:
        title: e.g. "clean" or "eps 0.2".
        images: float32 (K, C, H, W) in [0, 1].
        predictions: name of a network -> int64 (K,), the predicted classes.
    """

    title: str
    images: npt.NDArray[np.float32]
    predictions: Mapping[str, npt.NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Examples:
    """K images and what became of them.

    Args:
        chosen: one sentence that says how the images were chosen.
        labels: int64 (K,), the true classes.
        rows: the images in each state, the clean ones first.
        masks: title -> bool (H, W), True = kept.
    """

    chosen: str
    labels: npt.NDArray[np.int64]
    rows: tuple[ExampleRow, ...]
    masks: Mapping[str, npt.NDArray[np.bool_]]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as .npz, atomically."""
        index = {
            "chosen": self.chosen,
            "rows": [{"title": row.title, "networks": list(row.predictions)} for row in self.rows],
            "masks": list(self.masks),
        }
        arrays: dict[str, npt.NDArray[np.generic]] = {"index": np.array(json.dumps(index)), "labels": self.labels}
        for i, row in enumerate(self.rows):
            arrays[f"images{i}"] = row.images
            for j, classes in enumerate(row.predictions.values()):
                arrays[f"said{i}.{j}"] = classes
        arrays |= {f"mask{i}": mask for i, mask in enumerate(self.masks.values())}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Examples:
        """Read what :meth:`write` wrote. Nothing is unpickled.

        Raises:
            RecordError: the file is no such file.
            FileNotFoundError: there is none.
        """
        try:
            # NumPy leaves a file open that it cannot read.
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                index = json.loads(str(arrays["index"]))
                rows = tuple(
                    ExampleRow(
                        row["title"],
                        arrays[f"images{i}"],
                        {name: arrays[f"said{i}.{j}"] for j, name in enumerate(row["networks"])},
                    )
                    for i, row in enumerate(index["rows"])
                )
                masks = {title: arrays[f"mask{i}"] for i, title in enumerate(index["masks"])}
                return cls(index["chosen"], arrays["labels"], rows, masks)
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise RecordError(
                f"{os.fspath(path)} does not hold example images ({error}).", None, "what Examples.write() wrote"
            ) from error
