"""torch gives a parametrised module a class of its own, on top of the module's, and expects to find it there again."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["bare_class", "is_parametrized", "on_top_of"]


def is_parametrized(cls: type[nn.Module]) -> bool:
    """Whether ``torch.nn.utils.parametrize`` made this class."""
    return cls.__module__ == parametrize.__name__ and cls.__name__.startswith("Parametrized")


def bare_class(cls: type[nn.Module]) -> type[nn.Module]:
    """The class that a module had before it was parametrised."""
    return cls.__bases__[0] if is_parametrized(cls) else cls


def on_top_of(base: type[nn.Module], cls: type[nn.Module]) -> type[nn.Module]:
    """``base`` with the parametrisation of ``cls``; ``base`` itself where there is none."""
    if not is_parametrized(cls):
        return base
    attributes = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    return type(f"Parametrized{base.__name__}", (base,), attributes)
