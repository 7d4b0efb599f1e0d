"""Class numbers as data sets store them: any integer type, whole floats, one column."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcn_plugin.errors import LabelError

__all__ = ["class_numbers"]


def class_numbers(labels: npt.NDArray[np.generic] | Tensor, *, source: str) -> Tensor:
    """Turn stored labels into class numbers.

    Args:
        labels: (N,), or a column (N, 1) as MedMNIST and Keras write it; integers of any width, signed or not, booleans,
            or floats without a fraction.
        source: what they belong to, for the message.

    Returns:
        int64 (N,).

    Raises:
        LabelError: they are no numbers of classes, e.g. one-hot rows or fractions.
    """
    array: npt.NDArray[Any] = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    got = (str(array.dtype), array.shape)
    allowed = "integers (N,), one class number an image; a column (N, 1) and floats without a fraction will do"
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.dtype.kind not in "iubf" or array.ndim != 1:
        rows = array.ndim == 2 and array.dtype.kind in "iubf"
        raise LabelError(
            f"The labels of {source} have the wrong type or shape.",
            got,
            allowed,
            "one-hot rows become numbers with labels.argmax(1); several classes an image are not supported"
            if rows
            else None,
        )
    if array.dtype.kind == "f" and not bool((np.isfinite(array) & (array == np.floor(array))).all()):
        raise LabelError(f"The labels of {source} are no whole numbers.", got, allowed)
    # Above 2**63 - 1 unsigned numbers, and floats, would come out as others.
    if len(array) and array.dtype.kind in "uf" and float(abs(array).max()) >= 2.0**63:
        raise LabelError(f"The labels of {source} are out of range.", got, "class numbers from 0 on")
    return torch.from_numpy(array.astype(np.int64))
