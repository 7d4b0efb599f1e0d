"""What is derived from constant tensors, made once and kept as long as they live."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from torch import Tensor

__all__ = ["Derived", "derived"]


class Derived:
    """A cache keyed by the memory of tensors that nobody writes to.

    torch.compile and autograd pass the same memory in new tensor objects, so the key is its address.
    An entry keeps its tensors alive: their memory cannot become another tensor's as long as the entry is there.
    """

    def __init__(self) -> None:
        self._entries: dict[Hashable, tuple[tuple[Tensor | None, ...], Any]] = {}

    def __call__(self, kind: Hashable, tensors: tuple[Tensor | None, ...], make: Callable[[], Any]) -> Any:
        """The value of this kind for these tensors; ``make`` is called where there is none."""
        key = (kind, tuple(map(_place, tensors)))
        if key not in self._entries:
            self._entries[key] = (tuple(None if tensor is None else tensor.detach() for tensor in tensors), make())
        return self._entries[key][1]

    def forget(self, tensors: Iterable[Tensor | None]) -> None:
        """Drop every entry that was derived from one of these."""
        places = {_place(tensor) for tensor in tensors} - {None}
        for key in [key for key, (sources, _) in self._entries.items() if not places.isdisjoint(map(_place, sources))]:
            del self._entries[key]


def _place(tensor: Tensor | None) -> tuple[Any, ...] | None:
    if tensor is None:
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


derived = Derived()
"""What the engine's operators derive from weights, masks and row numbers."""
