"""Notices what changes in a model that is trained through a graph of it."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["MaskSnapshot", "ModelSnapshot", "has_hooks"]

_PLAIN = frozenset({bool, int, float, str, type(None)})
"""Types of a module's attributes that can be compared at every step."""


@dataclass(frozen=True, eq=False)
class ModelSnapshot:
    """What the graph of a model hangs on, but for its masks' bits.

    Args:
        objects: modules, parameters and buffers.
        values: what is read at tracing: dtypes, devices and shapes, training flags, a norm's momentum and eps, a
            dropout's share, whether there are hooks.
    """

    objects: list[object]
    values: list[object]

    @classmethod
    def of(cls, model: nn.Module) -> ModelSnapshot:
        """The state of a model as it is now."""
        objects: list[object] = []
        values: list[object] = []
        for module in model.modules():
            objects.append(module)
            values.append(has_hooks(module))
            values += [item for item in vars(module).items() if type(item[1]) in _PLAIN]
            for name, tensor in (*module._parameters.items(), *module._buffers.items()):
                objects.append(tensor)
                values.append((name, None if tensor is None else (tensor.dtype, tensor.device, tensor.shape)))
        return cls(objects, values)

    def same(self, other: ModelSnapshot) -> bool:
        """Whether nothing was replaced or set."""
        return (
            len(self.objects) == len(other.objects)
            and all(map(operator.is_, self.objects, other.objects))
            and self.values == other.values
        )


@dataclass(frozen=True, eq=False)
class MaskSnapshot:
    """Masks, and the bits that they had.

    Args:
        masks: buffers of the model.
        versions: how often PyTorch saw them written.
        bits: copies.
    """

    masks: list[Tensor]
    versions: list[int]
    bits: list[Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> MaskSnapshot:
        """The masks of a model as they are now."""
        masks = [buffer for buffer in model.buffers() if buffer.dtype == torch.bool]
        return cls(masks, [mask._version for mask in masks], [mask.clone() for mask in masks])

    def same(self) -> bool:
        """Whether all bits are what they were: many a library writes the same ones again at every step."""
        versions = [mask._version for mask in self.masks]
        if versions != self.versions:
            if not all(map(torch.equal, self.masks, self.bits)):
                return False
            self.versions[:] = versions
        return True


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks that are called in its forward or backward pass."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind) for kind in kinds)
