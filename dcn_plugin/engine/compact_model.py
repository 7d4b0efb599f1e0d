"""What compact() returns: the graph that runs, and the network that it was made from."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad

from dcn_plugin.engine import ops
from dcn_plugin.engine.memory_plan import Inference
from dcn_plugin.engine.plan import Plan, Way
from dcn_plugin.errors import CompactError, ImageRangeError, InputSizeError

__all__ = ["AskedBackend", "CompactModel", "without_gradient"]

AskedBackend = Literal["auto", "reference", "c", "triton"]


class CompactModel(nn.Module):
    """What :func:`~dcn_plugin.compact` returns: a snapshot; weights and masks cannot be changed any more.

    Its state dict is that of the model it was made from: weights and masks, no lists of rows. Under torch.func and in
    forward mode, which PyTorch does not offer to operators of others, it computes on images. Where no gradient is
    wanted it keeps the memory of its rows from batch to batch, up to batches of the size that it was made for.

    Shape:
        - Input: (N, C, H, W), of the size, device and dtype that the model had
        - Output: as the model's

    Raises:
        InputSizeError: in ``forward``: another (C, H, W).
        ImageRangeError: in ``forward``: another dtype.
        CompactError: ``load_state_dict``, or moving it to another device or dtype: compact again instead.

    Example:
        >>> fast = dcn.compact(net.eval(), backend="reference")
        >>> fast.input_size, fast.state_dict().keys() == net.state_dict().keys()
        ((1, 16, 16), True)
    """

    takes_one_size = True
    """Adapters of attacks that resize images ask for it."""

    def __init__(
        self,
        origin: nn.Module,
        asked: AskedBackend,
        on_images: fx.GraphModule,
        on_rows: fx.GraphModule,
        plan: Plan,
        input_size: tuple[int, int, int],
        device: torch.device,
        dtype: torch.dtype,
        as_it_is: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.input_size, self.asked = plan, input_size, asked
        self.device, self.dtype = device, dtype
        # In a tuple they are no submodules: torch.export would carry along what they hold.
        self._aside = (origin, on_images, as_it_is)
        self.on_rows = on_rows
        self._inference: Callable[[Tensor], Tensor] | None = None
        self._forget_with_me()
        self.eval()

    @property
    def origin(self) -> nn.Module:
        """A copy of the defective model, as it was when this one was made."""
        return self._aside[0]

    @property
    def on_images(self) -> nn.Module:
        """The same on images, batch norm folded."""
        return self._aside[1]

    @property
    def as_it_is(self) -> nn.Module | None:
        """The model with its weights frozen, for batch sizes at which nothing is faster; None: there are none."""
        return self._aside[2]

    def forward(self, images: Tensor) -> Tensor:
        """The model's output."""
        if tuple(images.shape[1:]) != self.input_size:
            raise InputSizeError(
                "A compact model takes images of one size, that of its masks.",
                tuple(images.shape),
                f"(N, {', '.join(map(str, self.input_size))})",
            )
        if images.dtype != self.dtype:
            raise ImageRangeError("A compact model computes in one dtype.", str(images.dtype), str(self.dtype))
        if torch.compiler.is_compiling():
            compiled: Tensor = self.on_rows(images)
            return compiled
        if _is_transformed(images):
            return self._run("images", images)
        if torch.jit.is_tracing():  # it must hold for batches of other sizes, which are cut into other pieces
            return self._run(self.plan.way(len(images)), images)
        parts = self.plan.parts(len(images))
        if len(parts) == 1:
            return self._run(parts[0][1], images)
        counts, ways = zip(*parts, strict=True)
        return torch.cat([self._run(way, piece) for way, piece in zip(ways, images.split(counts), strict=True)])

    def _run(self, way: Way, images: Tensor) -> Tensor:
        run: Callable[[Tensor], Tensor] = self.on_images
        if way == "compact":
            run = self.on_rows if _is_watched(images) else self._unwatched()
        elif way == "model" and self.as_it_is is not None:
            run = self.as_it_is
        return run(images)

    def make_lists(self) -> None:
        """Make the lists of rows of the forward pass, which the first batch would make."""
        if self.plan.backend == "triton":
            self.on_rows(torch.zeros(1, *self.input_size, dtype=self.dtype, device=self.device))
        else:
            self._unwatched()

    def _unwatched(self) -> Callable[[Tensor], Tensor]:
        if self._inference is None:
            self._inference = without_gradient(self.on_rows, self.plan.batch_size)
        return self._inference

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Weights and masks of the model that was compacted, under its own names."""
        return self.origin.state_dict(*args, destination=destination, prefix=prefix, keep_vars=keep_vars)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> NoReturn:
        """Not possible.

        Raises:
            CompactError: always.
        """
        raise CompactError(
            "A compact model is a snapshot; weights cannot be loaded into it.",
            fix="load them into the defective model and compact that again",
        )

    def _load_from_state_dict(self, *args: Any) -> None:
        # Where load_state_dict of a module around it ends up.
        self.load_state_dict({})

    def extra_repr(self) -> str:
        """The model it was made from, and the backend."""
        return f"{type(self.origin).__name__}, backend={self.plan.backend}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CompactModel:
        probe = fn(torch.zeros(1, dtype=self.dtype, device=self.device))
        if (probe.dtype, probe.device) != (self.dtype, self.device):
            raise CompactError(
                "A compact model stays where it was made.",
                f"{probe.dtype} on {probe.device}",
                f"{self.dtype} on {self.device}",
                "move the defective model and compact that again",
            )
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Memory and addresses are this process's own.
        return {**self.__dict__, "_inference": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._forget_with_me()

    def _forget_with_me(self) -> None:
        """The lists of rows go when the model goes."""
        weakref.finalize(self, ops.forget, list(self.on_rows.buffers()))


def without_gradient(graph: fx.GraphModule, batch_size: int) -> Callable[[Tensor], Tensor]:
    """The graph as it runs where no gradient is wanted: itself, unless it has rows that the C kernel computes."""
    inference = Inference(graph, largest=batch_size)
    return inference if inference.rows else graph


def _is_transformed(images: Tensor) -> bool:
    return torch._C._are_functorch_transforms_active() or forward_ad.unpack_dual(images).tangent is not None


def _is_watched(images: Tensor) -> bool:
    """Whether something needs to see every operation: autograd, a tracer, a mode, a subclass of tensors."""
    needs_gradient = images.requires_grad and torch.is_grad_enabled()
    modes = torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    return bool(needs_gradient or modes or torch.jit.is_tracing() or type(images) is not Tensor)
