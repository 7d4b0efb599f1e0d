"""What a measurement depends on, as text: two measurements with the same key may stand for each other.

A key is a JSON object. It is written beside what it stands for, so that a person can read why a result was reused.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import Attack
from dcn_plugin.data import LabelledImages
from dcn_plugin.engine import CompactModel
from dcn_plugin.evaluate.relations import hidden_modules
from dcn_plugin.support.environment import code_hash, hardware, package_versions
from dcn_plugin.support.model_state import device_of

__all__ = ["Key", "ModelKeys", "attack_key", "data_key", "digest", "model_key", "surroundings"]

Key = Mapping[str, Any]

# `repr` of an object without one of its own shows where it lies in memory, which says nothing about it.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def digest(key: object) -> str:
    """A short name for a key: 20 hex digits of the SHA-256 of its JSON."""
    text = json.dumps(key, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def model_key(model: nn.Module) -> Key | None:
    """What a model computes with: its printed structure, its classes, and every number it holds.

    Plain Python attributes that ``repr`` does not show are not part of it, save modules in a list or the like, nor is
    the source code of foreign classes. For a compact model it is what that was made from, and the backend that was
    asked for; not its plan, which measurements decide anew each time, and on which only rounding depends.

    Returns:
        None if the model cannot be told from others: its ``repr`` shows a memory address, or it holds
        parameters that have no values yet.
    """
    return _model_key(model, set())


class ModelKeys:
    """The keys of the models of one run: each model's weights are read once, so they must not change meanwhile."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[nn.Module, Key | None]] = {}  # the model itself, so that its id stays its own

    def __call__(self, model: nn.Module) -> Key | None:
        """See :func:`model_key`."""
        if id(model) not in self._known:
            self._known[id(model)] = model, model_key(model)
        return self._known[id(model)][1]


def _model_key(model: nn.Module, met: set[int]) -> Key | None:
    plain = _plain(model)
    structure, tensors = _structure(plain), _tensors(plain)
    if _ADDRESS.search(structure) or any(nn.parameter.is_lazy(t) or t.is_meta for t in tensors.values()):
        return None
    hashed = hashlib.sha256(structure.encode()).hexdigest()
    key: dict[str, Any] = {"structure": hashed, "state": _state_hash(tensors), "device": device_of(model).type}
    if compact := {name: module.asked for name, module in model.named_modules() if isinstance(module, CompactModel)}:
        key["compact"] = compact
    # A module that is met again, as where a part points back to the whole, says nothing new.
    met.update(id(module) for network in (model, plain) for module in network.modules())
    hidden = [module for owner in plain.modules() for module in hidden_modules(owner) if id(module) not in met]
    if hidden:
        key["hidden"] = [_model_key(module, met) for module in hidden]
    return None if None in key.get("hidden", ()) else key


def attack_key(attack: Attack) -> Key | None:
    """Class and settings of an attack; None if it has settings that are no plain values."""
    if attack.unkeyed:
        return None
    return {"class": f"{type(attack).__module__}.{type(attack).__qualname__}", "settings": attack.settings}


def data_key(data: LabelledImages) -> Key:
    """Name and content of an image set."""
    return {"name": data.name, "content": data.content_hash}


def surroundings(device: torch.device) -> Key:
    """What else may change a result: versions, this package's code, the machine."""
    return {"versions": package_versions(), "code": code_hash(), "hardware": hardware(device)}


def _plain(model: nn.Module) -> nn.Module:
    """The model, for reading only, with what compact models in it were made from in their place."""
    if isinstance(model, CompactModel):
        return model.origin
    if not any(isinstance(module, CompactModel) for module in model.modules()):
        return model
    shell = copy.copy(model)
    shell._modules = {name: child if child is None else _plain(child) for name, child in model._modules.items()}
    return shell


def _structure(model: nn.Module) -> str:
    classes = sorted({f"{type(m).__module__}.{type(m).__qualname__}" for m in model.modules()})
    return "\n".join([repr(model), *classes])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, also those that a state dict leaves out."""
    return dict(itertools.chain(model.named_parameters(), model.named_buffers()))


def _state_hash(tensors: Mapping[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}\n".encode())
        # The bytes, whatever the dtype: NumPy knows no bfloat16.
        flat = tensor.detach().cpu().contiguous().flatten()
        state.update(flat.view(torch.uint8).numpy().tobytes() if len(flat) else b"")
    return state.hexdigest()
