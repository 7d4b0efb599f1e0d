"""Hands lists and rows to the C kernel of training; see training.c for what it computes."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcn_plugin.engine.native import address, lanes_for, loaded
from dcn_plugin.engine.training.lists import PAD, Items

__all__ = ["backward", "finish", "forward", "prepare"]

_TILE = 64
"""Images whose gradients lie in the first cache together."""
_BLOCK = 6
"""``BLOCK`` of training.c."""


def _structure(name: str, pointers: str, numbers: str) -> type[ctypes.Structure]:
    fields: list[tuple[str, Any]] = [(field, ctypes.c_void_p) for field in pointers.split()]
    fields += [(field, ctypes.c_int64) for field in numbers.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


# The structures of training.c.
_Forward = _structure(
    "_Forward",
    "x weights y sums shift reads places read_start write_start chunks",
    "chunk_count batch channels groups",
)
_Backward = _structure(
    "_Backward",
    "x weights y grad out scale x_grad weight_grad scratch reads places grad_rows read_start write_start",
    "items batch channels groups width tile slots weight_count scratch_size",
)
_Finish = _structure("_Finish", "y residual out rows scale", "count batch channels relu")
_Prepare = _structure("_Prepare", "grad out y residual_grad sums rows mean", "count batch")


def _run(name: str, structure: type[ctypes.Structure], batch: int, values: dict[str, Any]) -> None:
    places = {key: _place(value) if not isinstance(value, int) else value for key, value in values.items()}
    job = structure(**places, batch=batch)
    function = getattr(loaded(), name)
    function.restype, function.argtypes = None, (ctypes.POINTER(structure), ctypes.c_int64, ctypes.c_int64)
    function(ctypes.byref(job), lanes_for(batch), torch.get_num_threads())


def _place(value: Tensor | NDArray[Any] | None) -> int | None:
    return value.data_ptr() if isinstance(value, Tensor) else address(value)


def forward(
    items: Items, x: Tensor, weights: Tensor, groups: int, *, sums: bool
) -> tuple[Tensor, NDArray[np.float64] | None]:
    """The convolution.

    Args:
        items: the lists.
        x: float32 (rows, N), contiguous, N >= 1.
        weights: packed, see :func:`dcn_plugin.engine.training.lists.pack_weight`.
        groups: of the convolution.
        sums: whether the sums of each channel are wanted.

    Returns:
        y, float32 (Y, N); and float64 (3, chunks, O): some value of y, the sum of y minus that, the sum of its squares.
    """
    chunks, channels = items.counts.shape
    y = x.new_empty(len(items.places), x.shape[1])
    lanes = np.zeros((chunks, channels, 2, PAD)) if sums else None
    shift = np.full((chunks, channels), np.nan, dtype=np.float32)
    lists = {name: getattr(items, name) for name in ("reads", "places", "read_start", "write_start", "chunks")}
    numbers = {"chunk_count": chunks, "channels": channels, "groups": groups}
    tensors = {"x": x, "weights": weights, "y": y, "sums": lanes, "shift": shift}
    _run("dcn_run_train_forward", _Forward, x.shape[1], tensors | lists | numbers)
    if lanes is None:
        return y, None
    totals = lanes.sum(axis=3)
    return y, np.stack([np.where(items.counts > 0, shift, 0).astype(np.float64), totals[..., 0], totals[..., 1]])


def finish(
    items: Items, y: Tensor, residual: Tensor | None, scale: NDArray[np.float32], *, relu: bool, in_place: bool = False
) -> Tensor:
    """Rows behind norm, mask, sum and ReLU: ``relu(scale[0] * y + scale[1] + residual)``, float32 (rows, N).

    Args:
        items: the lists.
        y: see :func:`forward`.
        residual: float32 (rows, N), contiguous, or None.
        scale: (2, O).
        relu: whether negative values become 0.
        in_place: write over y, where its rows are those of the result.
    """
    out = y if in_place and items.aligned else y.new_empty(len(items.rows), y.shape[1])
    if out is y and residual is None and not relu and (scale[0] == 1).all() and not scale[1].any():
        return y
    numbers = {"count": len(out), "channels": scale.shape[1], "relu": int(relu)}
    tensors = {"y": y, "residual": residual, "out": out, "rows": items.rows, "scale": scale}
    _run("dcn_run_train_finish", _Finish, y.shape[1], tensors | numbers)
    return out


def prepare(
    items: Items,
    grad: Tensor,
    out: Tensor | None,
    y: Tensor | None,
    mean: NDArray[np.float32],
    *,
    residual_rows: int | None = None,
) -> tuple[Tensor | None, NDArray[np.float64]]:
    """What the gradient in front of the ReLU gives to the residual, and its sums over channels for the norm.

    Args:
        items: the lists.
        grad: float32 (rows, N), contiguous, of the rows behind the ReLU.
        out: these rows; None: there was no ReLU.
        y: see :func:`forward`; None: its sum is not wanted.
        mean: (O,), that of y.
        residual_rows: rows of the residual; None: its gradient is not wanted.

    Returns:
        The gradient towards the residual, (residual_rows, N) or None; and float64 (2, O), of the gradient in front of
        the ReLU: its sum where the convolution's value counts, and that of its products with y - mean.
    """
    residual_grad = None if residual_rows is None else grad.new_zeros(residual_rows, grad.shape[1])
    sums = np.empty((len(items.rows), 2), dtype=np.float32)
    tensors = {"grad": grad, "out": out, "y": y, "residual_grad": residual_grad, "sums": sums, "mean": mean}
    _run("dcn_run_train_prepare", _Prepare, grad.shape[1], {**tensors, "rows": items.rows, "count": len(grad)})
    channels = items.rows[:, 1]
    return residual_grad, np.stack([np.bincount(channels, sums[:, at], minlength=len(mean)) for at in (0, 1)])


def backward(
    items: Items,
    x: Tensor,
    weights: Tensor,
    y: Tensor | None,
    grad: Tensor,
    out: Tensor | None,
    scale: NDArray[np.float32],
    groups: int,
    *,
    towards_x: bool,
    towards_weights: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the convolution, whose own is ``scale[0] * (grad where out > 0) + scale[1] * y + scale[2]``.

    Args:
        items: the lists.
        x: as in :func:`forward`; ``weights`` and ``groups`` too.
        weights: packed.
        y: what it gave; None: ``scale[1]`` is 0.
        grad: see :func:`prepare`; ``out`` too.
        out: the rows behind the ReLU; None: there was none.
        scale: (3, O).
        groups: of the convolution.
        towards_x: whether that gradient is wanted; ``towards_weights`` likewise.

    Returns:
        The gradients towards x, (rows, N), and towards the weights, packed; None: not wanted.
    """
    batch, threads = x.shape[1], torch.get_num_threads()
    tile = min(_TILE, math.ceil(batch / threads / PAD) * PAD)
    slots = min(threads, math.ceil(batch / tile))
    x_grad = torch.zeros_like(x) if towards_x else None
    weight_grad = weights.new_zeros(slots, *weights.shape) if towards_weights else None
    size = items.width * (2 * tile + _BLOCK)
    lists = {name: getattr(items, name) for name in ("reads", "places", "grad_rows", "read_start", "write_start")}
    numbers = {
        "items": len(items.read_start) - 1,
        "channels": scale.shape[1],
        "groups": groups,
        "width": items.width,
        "tile": tile,
        "slots": slots,
        "weight_count": weights.numel(),
        "scratch_size": size,
    }
    tensors = {
        "x": x,
        "weights": weights,
        "y": y,
        "grad": grad,
        "out": out,
        "scale": scale,
        "x_grad": x_grad,
        "weight_grad": weight_grad,
        "scratch": x.new_empty(slots, size),
    }
    _run("dcn_run_train_backward", _Backward, batch, tensors | lists | numbers)
    return x_grad, None if weight_grad is None else weight_grad.sum(0)
