"""The fused form of ``nn.InstanceNorm2d``, which timm does not have."""

# No `from __future__ import annotations`: TorchScript reads the annotations of these classes as objects.

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

__all__ = ["InstanceNormAct2d"]


class InstanceNormAct2d(nn.InstanceNorm2d):
    """What surgery turns an ``nn.InstanceNorm2d`` into: the same arithmetic, then ``.drop``, then ``.act``."""

    if TYPE_CHECKING:  # TorchScript would take the annotations for interfaces
        drop: nn.Module
        act: nn.Module

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.InstanceNorm2d's
        """Normalise each image by itself, zero the defective neurons, activate."""
        torch._assert(input.ndim == 4, f"expected 4D input (got {input.ndim}D input)")  # as timm's: fx can trace it
        return self.act(self.drop(self._apply_instance_norm(input)))  # type: ignore[no-any-return,no-untyped-call]
