"""The state of a model: where it lies, an image that suits it, copies, and flags that come back as they were."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dcn_plugin.errors import TraceError

__all__ = ["copy_of", "device_of", "dummy_image", "eval_mode", "frozen_weights", "training_flags"]

_Module = TypeVar("_Module", bound=nn.Module)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def dummy_image(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    """A (1, C, H, W) image on the model's device and of its dtype, the same at every call.

    Raises:
        TraceError: the model's parameters are lazy or on the meta device.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(nn.parameter.is_lazy(t) for t in tensors):
        raise TraceError(
            "The model has lazy parameters that have no size yet.", fix="run it once on an image before this call"
        )
    if any(t.is_meta for t in tensors):
        raise TraceError(
            "The model is on the meta device, where masks would have no bits.",
            fix="materialise it (model.to_empty(device=...)) before this call",
        )
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    # Not all equal, so that no branch on the data sees a degenerate image; no generator is touched.
    ramp = torch.linspace(0, 1, steps=input_size[1] * input_size[2], dtype=torch.float32)
    image = ramp.view(1, 1, *input_size[1:]).expand(1, *input_size)
    return image.to(device=like.device, dtype=like.dtype).contiguous()


@contextlib.contextmanager
def training_flags(model: nn.Module) -> Iterator[None]:
    """Give every submodule its own training flag back afterwards."""
    # Flag by flag: model.train() alone would thaw batch norms that their owner has frozen. It is called all the same,
    # so that modules which do more than set a flag undo it (merged LoRA weights, cached attention biases).
    flags = [(module, module.training) for module in model.modules()]
    was_training = model.training
    try:
        yield
    finally:
        model.train(was_training)
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode and give every submodule its own training flag back afterwards."""
    with training_flags(model):
        model.eval()
        yield


@contextlib.contextmanager
def frozen_weights(model: nn.Module) -> Iterator[None]:
    """Switch the gradients of parameters off (they would only cost time), and each one back as it was."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def copy_of(model: _Module, *, share_parameters: bool = False) -> _Module:
    """A deep copy of a network.

    ``copy.deepcopy`` refuses tensors that belong to a graph of gradients. Networks hold such: the weight that
    ``torch.nn.utils.weight_norm`` computes, or activations that somebody kept on a module. The copy has their values.

    Args:
        model: the network.
        share_parameters: the copy has the same parameters, not copies of them.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for value in tree_leaves({name: value for name, value in vars(module).items() if not name.startswith("_")}):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    if share_parameters:
        memo |= {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, memo)
