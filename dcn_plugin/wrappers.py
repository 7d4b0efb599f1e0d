"""What stands around a network and is not part of it: compilers, parallel wrappers, and normalisation.

Everything that asks about a network (its masks, its weights, its specification) asks about the module inside.
"""

from __future__ import annotations

from torch import nn

from dcn_plugin.layers import Normalized

__all__ = ["Constants", "bare_name", "network_in", "unwrap"]

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
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model, constants


def network_in(model: nn.Module) -> nn.Module:
    """The network inside its wrappers; see :func:`unwrap`."""
    return unwrap(model)[0]


def bare_name(path: str) -> str:
    """A module's or a tensor's name without the level that ``torch.compile`` puts around an inner module."""
    return ".".join(part for part in path.split(".") if part != "_orig_mod")
