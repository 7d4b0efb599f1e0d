"""Who computes: this process alone, or several that Accelerate started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.errors import SpecError
from dcn_plugin.support.processes import ALONE, Team

__all__ = ["Accelerated", "Alone"]


class Alone:
    """What the loop asks of whoever carries devices and processes, as one process without Accelerate does it.

    Args:
        device: of the model.
    """

    team = ALONE
    precision = "no"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The model to call and the optimiser to step; the parameters are those of ``model``."""
        return model, optimizer

    def backward(self, loss: Tensor) -> None:
        """Backpropagate; gradients are the mean over processes."""
        loss.backward()

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> None:
        """Scale the gradient down to an L2 norm."""
        nn.utils.clip_grad_norm_(parameters, norm)

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        return value

    def align(self, model: nn.Module) -> None:
        """Give every process the first one's floating-point buffers, such as running statistics."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell the trackers, which the caller of Accelerate has started with ``init_trackers``."""

    def release(self, model: nn.Module) -> None:
        """Take back what ``prepare`` did to the model itself."""


class Accelerated(Alone):
    """The processes of an :class:`accelerate.Accelerator`.

    Args:
        accelerator: of one or several processes, each with the whole model (no sharding of weights).

    Raises:
        SpecError: it works in a way in which a run could not be resumed exactly.
    """

    def __init__(self, accelerator: Any) -> None:
        kind = str(accelerator.distributed_type).rpartition(".")[2]
        for what, got, allowed in (
            ("distributed_type", kind, ("NO", "MULTI_CPU", "MULTI_GPU")),
            ("mixed_precision", str(accelerator.mixed_precision), ("no", "bf16")),
            ("gradient_accumulation_steps", accelerator.gradient_accumulation_steps, (1,)),
        ):
            if got not in allowed:
                raise SpecError(f"This Accelerator's {what} is not supported.", got, ", ".join(map(str, allowed)))
        self._accelerator = accelerator
        self.team = Team.of(accelerator)
        super().__init__(accelerator.device)
        self.precision = accelerator.mixed_precision
        self._before: set[str] = set()

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Accelerate's."""
        self._before = set(model.__dict__)
        prepared, stepper = self._accelerator.prepare(model, optimizer)
        return prepared, stepper

    def backward(self, loss: Tensor) -> None:
        """Accelerate's."""
        self._accelerator.backward(loss)

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> None:
        """Accelerate's."""
        self._accelerator.clip_grad_norm_(parameters, norm)

    def total(self, value: Tensor) -> Tensor:
        """The sum over processes."""
        summed: Tensor = self._accelerator.reduce(value, reduction="sum")
        return summed

    def align(self, model: nn.Module) -> None:
        """Copy the first process's floating-point buffers to the others."""
        from accelerate.utils import broadcast

        if self.team.size > 1:
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(broadcast(buffer))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell the trackers."""
        self._accelerator.log(dict(values), step=step)

    def release(self, model: nn.Module) -> None:
        """Take Accelerate's marks off the model: left there, a second training would not be prepared at all."""
        self._accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        for name in ("_is_accelerate_prepared", "forward"):
            if name not in self._before:
                model.__dict__.pop(name, None)
