"""Copies of networks, whatever their user keeps on them."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["copy_of"]

_Module = TypeVar("_Module", bound=nn.Module)


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
        for value in tree_leaves({name: kept for name, kept in vars(module).items() if not name.startswith("_")}):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    if share_parameters:
        memo |= {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, memo)
