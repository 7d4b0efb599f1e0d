"""Measures what reaches the first activation behind a mask, whatever classes lie between."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from dcn_plugin.surgery.reach import ACTIVATIONS, KEEPS, LINEAR
from dcn_plugin.surgery.trace import NORM_OPS

__all__ = ["Follower"]


class Follower(TorchDispatchMode):
    """Follows defective neurons through the operations that run, up to the first activation.

    Scales, shifts, changes of order, and norms are followed. The way ends at a layer, where positions are mixed, and at
    a sum with another signal: what comes behind does not belong to the mask alone.

    Args of what it keeps:
        leaks: key of a mask -> (neurons that were not zero in front of an activation, its name).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.leaks: dict[Hashable, tuple[int, str]] = {}
        self._dead: Any = WeakIdKeyDictionary()  # tensor -> {key: bool of the tensor's shape}

    def start(self, key: Hashable, out: Tensor, dead: Tensor) -> None:
        """Follow ``out`` from here on, in which the neurons of ``dead`` (bool, the same shape) should be zero."""
        self._dead.setdefault(out, {})[key] = dead

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        followed = [v for v in tensors if self._dead.get(v)]
        if not followed:
            return func(*args, **kwargs)
        op = func.overloadpacket.__name__.rstrip("_")
        if op in ACTIVATIONS:
            for tensor in followed:
                self._check(tensor, op)
        out = func(*args, **kwargs)
        results = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        for key in {key for v in followed for key in self._dead[v]}:
            carried = self._carried(func, op, args, kwargs, tensors, results, key)
            for result, dead in zip(results, carried, strict=False):
                self.start(key, result, dead)
            for result in results[len(carried) :]:  # overwritten in place
                self._dead.get(result, {}).pop(key, None)
        return out

    def _check(self, tensor: Tensor, op: str) -> None:
        for key, dead in self._dead[tensor].items():
            count = int((tensor[dead] != 0).sum())
            if count:
                self.leaks.setdefault(key, (count, op))

    def _carried(
        self,
        func: Any,
        op: str,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        results: list[Tensor],
        key: Hashable,
    ) -> list[Tensor]:
        """Which neurons should be zero in each result; [] where the way ends."""
        if op in KEEPS:
            moved = func(*tree_map(lambda v: self._as_data(v, key), args), **kwargs)
            return [v.abs() == 1 for v in tree_leaves(moved) if isinstance(v, Tensor)]
        tracked = [v for v in tensors if key in self._dead.get(v, {})]
        shape = results[0].shape if results else ()
        if op in LINEAR:
            same_shape = [v for v in tensors if v.shape == shape and not any(v is other for other in tracked)]
            if same_shape and op not in ("mul", "div"):
                return []
        elif not any(name in op for name in NORM_OPS) or tracked[0].shape != shape:
            return []
        dead = torch.ones(shape, dtype=torch.bool, device=results[0].device)
        for tensor in tracked:
            dead = dead & self._dead[tensor][key]
        return [dead]

    def _as_data(self, value: Any, key: Hashable) -> Any:
        """The same argument with 1 in the place of each neuron that should be zero."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        dead = self._dead.get(value, {}).get(key)
        return torch.zeros_like(value) if dead is None else dead.to(value.dtype).contiguous()
