"""What stands around a network and is not part of it: compilers, parallel wrappers, and normalisation.

Everything that asks about a network (its masks, its weights, its specification) asks about the module inside.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

from torch import nn

from dcn_plugin.layers import Normalized

__all__ = ["Constants", "bare", "bare_name", "bare_path", "network_in", "on_bare_network", "unwrap"]

_COMPILED = "_compiled_call_impl"  # where torch keeps what module.compile() made, on the module itself
_Function = TypeVar("_Function", bound=Callable[..., Any])

# Mean and std of a Normalized, one number a channel.
Constants = dict[str, list[float]]


def unwrap(model: nn.Module) -> tuple[nn.Module, Constants | None]:
    """Find the network inside its wrappers, however often and in whatever order it is wrapped.

    Looked through are ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and
    :class:`dcn_plugin.Normalized`.

    Args:
        model: a network, or a wrapped one.

    Returns:
        The network, the same object as inside ``model``; and the constants of the innermost ``Normalized`` around it,
        or None.
    """
    constants = None
    while True:
        if isinstance(model, Normalized):
            constants = {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
            model = model.model
        elif (inside := _inside(model)) is not None:
            model = inside
        else:
            return model, constants


def _inside(module: nn.Module) -> nn.Module | None:
    """What a compiler or a parallel wrapper stands around; None for any other module."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inside = module.module
    else:
        inside = getattr(module, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else None


def network_in(model: nn.Module) -> nn.Module:
    """The network inside its wrappers; see :func:`unwrap`."""
    return unwrap(model)[0]


@contextlib.contextmanager
def bare(model: nn.Module) -> Iterator[nn.Module]:
    """The network inside its wrappers, and meanwhile without those around its inner modules, too.

    Paths of modules and state-dict keys are then those of the network as it was before anything was wrapped.
    (``Normalized`` is looked through on the outside alone: inside a network it is a part of it.) The modules are the
    same objects: what is done to them lasts. ``module.compile()``, which wraps nothing, does not act meanwhile either:
    compiled modules call no hooks. Afterwards everything is back.

    Args:
        model: a network, or a wrapped one. Anything else is given back as it is: whoever needs a network says so.
    """
    network = network_in(model)
    if not isinstance(network, nn.Module):
        yield network
        return
    wrapped: list[tuple[nn.Module, str, nn.Module]] = []
    compiled = [(m, m.__dict__.pop(_COMPILED)) for m in network.modules() if _COMPILED in m.__dict__]
    try:
        for parent in list(network.modules()):
            for name, child in parent._modules.items():
                if child is not None and _inside(parent) is None and _inside(child) is not None:
                    wrapped.append((parent, name, child))
        for parent, name, child in wrapped:
            inner = child
            while (inside := _inside(inner)) is not None:
                inner = inside
            parent._modules[name] = inner
        yield network
    finally:
        for parent, name, child in wrapped:
            parent._modules[name] = child
        for module, call in compiled:
            module.__dict__[_COMPILED] = call


def on_bare_network(function: _Function) -> _Function:
    """Decorate a function whose first argument, ``model``, is a network: it gets that of :func:`bare`."""

    @functools.wraps(function)
    def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with bare(model) as network:
            return function(network, *args, **kwargs)

    return cast(_Function, call)


def bare_path(network: nn.Module, path: str) -> str:
    """The name that a module or tensor of ``network`` has in :func:`bare`, given the one it has in ``network``."""
    parts: list[str] = []
    module: nn.Module | None = network
    for part in path.split("."):
        while module is not None and (inside := _inside(module)) is not None and part not in module._modules:
            module = inside  # a level that the path has not
        wrapper = module is not None and _inside(module) is not None
        parts += [] if wrapper else [part]
        child = getattr(module, part, None)
        module = child if isinstance(child, nn.Module) else None
    return ".".join(parts)


def bare_name(path: str) -> str:
    """A module's or a tensor's name without the level that ``torch.compile`` puts around an inner module."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")
