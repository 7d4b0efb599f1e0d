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

from dcn_plugin.errors import ModelChangedError, TraceError

__all__ = [
    "check_values",
    "copy_of",
    "device_of",
    "dummy_image",
    "eval_mode",
    "frozen_weights",
    "is_empty",
    "is_offloaded",
    "training_flags",
    "unchanged",
]

_Module = TypeVar("_Module", bound=nn.Module)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU if it has none."""
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate keeps the model's tensors elsewhere, and brings them for the time of each call."""
    return any(getattr(hook, "offload", False) for hook in _hooks_of_accelerate(model))


def _hooks_of_accelerate(model: nn.Module) -> Iterator[object]:
    for hook in (getattr(module, "_hf_hook", None) for module in model.modules()):
        yield from getattr(hook, "hooks", (hook,))


def is_empty(model: nn.Module) -> bool:
    """Whether weights of the model have sizes and no values yet: they are on the meta device."""
    return not is_offloaded(model) and any(t.is_meta for t in itertools.chain(model.parameters(), model.buffers()))


def check_values(model: nn.Module) -> None:
    """Check that the weights of a model are there.

    Raises:
        TraceError: some are on the meta device.
    """
    if is_empty(model):
        raise TraceError(
            "The model is on the meta device: its weights have no values yet.",
            fix="load them with model.load_state_dict(..., assign=True), or materialise the model "
            "(model.to_empty(device=...)) and load them then, before this call",
        )


def dummy_image(model: nn.Module, input_size: tuple[int, int, int], *, values: bool = True) -> Tensor:
    """A (1, C, H, W) image on the model's device and of its dtype, the same at every call.

    Args:
        model: the model.
        input_size: (C, H, W).
        values: the model has to have some; otherwise its shapes will do, and the image may be on the meta device.

    Raises:
        TraceError: the model's parameters are lazy, or on the meta device where that does not do.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(nn.parameter.is_lazy(t) for t in tensors):
        raise TraceError(
            "The model has lazy parameters that have no size yet.", fix="run it once on an image before this call"
        )
    if values:
        check_values(model)
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    # Not all equal, so that no branch on the data sees a degenerate image; no generator is touched.
    ramp = torch.linspace(0, 1, steps=input_size[1] * input_size[2], dtype=torch.float32)
    image = ramp.view(1, 1, *input_size[1:]).expand(1, *input_size)
    # Offloaded weights say no device; where there is none but meta, accelerate moves the image to the first layer's.
    offloaded = like.is_meta and is_offloaded(model)
    device = next((t.device for t in tensors if not t.is_meta), torch.device("cpu")) if offloaded else like.device
    return image.to(device=device, dtype=like.dtype).contiguous()


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


@contextlib.contextmanager
def unchanged(model: nn.Module, who: str) -> Iterator[None]:
    """Check that a model is afterwards as it was: its modules, their modes and hooks, and its parameters.

    Buffers may change, such as counters of a model's own. Nothing is checked after an exception.

    Args:
        model: the model.
        who: the attack, for the error.

    Raises:
        ModelChangedError: it is not.
    """
    before = _marks(model)
    yield
    after = _marks(model)
    changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
    if changed:
        raise ModelChangedError(
            f"{who} changed the network that it attacked, so that its images are those of another one.",
            ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else ""),
            "an attack that leaves modes, weights, hooks and modules as they are",
            "build the network anew, and take another attack",
        )


def _marks(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """What tells whether a module or a parameter was touched."""
    marks: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        marks[path or type(module).__name__] = (id(module), module.training, *map(len, hooks))
    for path, parameter in model.named_parameters():
        # An inference tensor has no version; it cannot be written to outside of inference mode either.
        marks[path] = (id(parameter), -1 if parameter.is_inference() else parameter._version)
    return marks


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
