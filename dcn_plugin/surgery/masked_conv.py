"""A convolution without a norm carries its mask itself: its class is exchanged for one that calls ``self.drop``."""

# No `from __future__ import annotations`: TorchScript reads the annotations of these classes as objects.

import inspect
from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from dcn_plugin.errors import SiteError
from dcn_plugin.surgery.parametrized import is_parametrized, on_top_of

__all__ = ["MaskedConv2d", "is_masked_conv", "masked_conv_class", "taken_by_conv", "unmasked_conv_class"]


class _MaskedConv:
    """Mixed into a Conv2d subclass by surgery: the subclass's own forward, then the mask in ``drop``."""

    if TYPE_CHECKING:  # TorchScript would take the annotation for an interface
        drop: nn.Module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise _no_constructor(type(self))

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return cast(Tensor, self.drop(super().forward(*args, **kwargs)))  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time, so pickle is told how to make it again.
        state = cast(tuple[Any, ...], super().__reduce_ex__(2))[2:]
        return (_rebuild_masked_conv, (unmasked_conv_class(type(self)),), *state)  # type: ignore[arg-type]


class _ScriptableMaskedConv(_MaskedConv):
    """The same for a subclass whose forward takes one tensor, without ``super()``, which TorchScript cannot compile."""

    if TYPE_CHECKING:
        _unmasked: Any

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self._unmasked(x))  # type: ignore[no-any-return]


class MaskedConv2d(nn.Conv2d):
    """What surgery turns a plain ``nn.Conv2d`` without norm into."""

    if TYPE_CHECKING:
        drop: nn.Module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise _no_constructor(type(self))

    def forward(self, input: Tensor) -> Tensor:
        """Convolve, then zero the defective neurons."""
        return self.drop(self._conv_forward(input, self.weight, self.bias))  # type: ignore[no-any-return]


def _no_constructor(cls: type[object]) -> SiteError:
    return SiteError(
        f"{cls.__name__} is what defectify() turns a convolution into; it is not built by itself. Tools that build "
        "layers of the class that they adapt (LoRA and DoRA of peft) cannot adapt a convolution with its own mask.",
        fix="adapt layers whose mask comes behind a norm, or adapt the plain network (dcn_plugin.undefectify), merge "
        "the adapters into it, and call defectify() after that",
    )


_MASKED: dict[type[nn.Conv2d], type[nn.Conv2d]] = {nn.Conv2d: MaskedConv2d}


def masked_conv_class(base: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """The class that runs ``base``'s forward and then ``self.drop``; the same one at every call."""
    if is_parametrized(base):
        return cast(type[nn.Conv2d], on_top_of(masked_conv_class(base.__bases__[0]), base))
    if base not in _MASKED:
        namespace: dict[str, Any] = {"__module__": base.__module__}
        mixin = _MaskedConv
        if list(inspect.signature(base.forward).parameters) == ["self", "x"]:
            mixin = _ScriptableMaskedConv
            namespace["_unmasked"] = _renamed(base.forward, "_unmasked")
        _MASKED[base] = type(f"Masked{base.__name__}", (mixin, base), namespace)
    return _MASKED[base]


def _renamed(function: Any, name: str) -> Any:
    """A copy under another name: TorchScript files a method under the name of its function."""
    copy = FunctionType(function.__code__, function.__globals__, name, function.__defaults__, function.__closure__)
    copy.__annotations__ = function.__annotations__
    return copy


def unmasked_conv_class(masked: type[nn.Module]) -> type[nn.Conv2d]:
    """The inverse of :func:`masked_conv_class`."""
    if is_parametrized(masked):
        return cast(type[nn.Conv2d], on_top_of(unmasked_conv_class(masked.__bases__[0]), masked))
    return nn.Conv2d if masked is MaskedConv2d else cast(type[nn.Conv2d], masked.__bases__[1])


def taken_by_conv(module: nn.Conv2d) -> list[str]:
    """What a convolution has of its own under the names that the mask needs, [] if there is place for a mask."""
    names = ["forward"] if "forward" in vars(module) else []
    return [*names, "drop"] if hasattr(module, "drop") else names


def is_masked_conv(module: nn.Module) -> bool:
    """Whether surgery gave this convolution a mask."""
    return isinstance(module, MaskedConv2d | _MaskedConv)


def _rebuild_masked_conv(base: type[nn.Conv2d]) -> nn.Conv2d:
    cls = masked_conv_class(base)
    return cls.__new__(cls)
