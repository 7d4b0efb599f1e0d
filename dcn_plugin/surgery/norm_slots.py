"""Where a mask fits into a normalisation layer.

timm's fused norm + activation layers run norm -> ``.drop`` -> ``.act``, and ``.drop`` is exactly the
place of the mask. A plain norm is turned into its fused twin (same object, parameters and buffers; another
class), so timm's converters, which keep ``.drop``, keep the mask.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import timm.layers as tl
from timm.layers.grn import GlobalResponseNorm
from timm.layers.norm_act import (
    FrozenBatchNormAct2d,
    LayerNormAct2dFp32,
    LayerNormActFp32,
    RmsNormAct2dFp32,
    RmsNormActFp32,
)
from timm.layers.split_batchnorm import SplitBatchNorm2d
from torch import nn
from torchvision.models.convnext import LayerNorm2d as TorchvisionLayerNorm2d
from torchvision.ops.misc import FrozenBatchNorm2d

from dcn_plugin.specs import Layout, Slot
from dcn_plugin.surgery.instance_norm import InstanceNormAct2d
from dcn_plugin.surgery.parametrized import bare_class, on_top_of

__all__ = ["is_norm", "layout_of", "remove_slot", "slot_of", "taken_names", "with_slot"]

# plain norm -> the class that runs the same arithmetic, then `.drop`, then `.act`
_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: tl.BatchNormAct2d,
    nn.InstanceNorm2d: InstanceNormAct2d,
    nn.SyncBatchNorm: tl.SyncBatchNormAct,
    FrozenBatchNorm2d: FrozenBatchNormAct2d,
    SplitBatchNorm2d: SplitBatchNorm2d,
    nn.GroupNorm: tl.GroupNormAct,
    tl.GroupNorm: tl.GroupNormAct,
    tl.GroupNorm1: tl.GroupNorm1Act,
    nn.LayerNorm: tl.LayerNormAct,
    tl.LayerNorm: tl.LayerNormAct,
    tl.LayerNormFp32: LayerNormActFp32,
    tl.LayerNorm2d: tl.LayerNormAct2d,
    tl.LayerNorm2dFp32: LayerNormAct2dFp32,
    TorchvisionLayerNorm2d: tl.LayerNormAct2d,
    tl.RmsNorm: tl.RmsNormAct,
    tl.RmsNormFp32: RmsNormActFp32,
    tl.RmsNorm2d: tl.RmsNormAct2d,
    tl.RmsNorm2dFp32: RmsNormAct2dFp32,
}
_FUSED = frozenset(_TWINS.values())
_CHOOSE_PRECISION = (tl.GroupNorm, tl.GroupNorm1, tl.LayerNorm, tl.LayerNorm2d, tl.RmsNorm, tl.RmsNorm2d)
# These scale a neuron by the size of its neighbours; they do not normalise what a convolution puts out.
_RESPONSE_NORMS = (GlobalResponseNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)
# What a subclass may define without behaving otherwise: the rest of a class body would be lost with the class.
_HARMLESS = frozenset(
    [
        "__init__",
        "__module__",
        "__doc__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__constants__",
        "__dict__",
        "__weakref__",
        "__firstlineno__",
        "__static_attributes__",
        "__qualname__",
        "__parameters__",
        "__orig_bases__",
        "extra_repr",
    ]
)
_LAST_DIM = (nn.LayerNorm, tl.RmsNorm, tl.RmsNormFp32)  # normalise trailing dimensions ...
_NOT_LAST_DIM = (tl.LayerNorm2d, tl.LayerNormAct2d, tl.LayerNorm2dFp32, LayerNormAct2dFp32, TorchvisionLayerNorm2d)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation (with or without an activation), supported or not."""
    if isinstance(module, tuple(_TWINS)):
        return True
    if isinstance(module, _RESPONSE_NORMS):
        return False
    # A norm by its name is folded into one call, and refused where a mask would have to go behind it. One with another
    # name is recognised by what it computes (see dcn_plugin.surgery.reach). Nothing with weights beyond a scale and a
    # shift is one: a "NormConv2d" convolves.
    name = type(module).__name__.lower()
    if "norm" not in name and "abn" not in name:
        return False
    learned = any(sum(n > 1 for n in parameter.shape) > 1 for parameter in module.parameters())
    return not learned and not any(
        isinstance(m, (nn.modules.conv._ConvNd, nn.Linear, *_TWINS)) for m in module.modules()
    )


def slot_of(module: nn.Module) -> Slot | None:
    """The kind of slot: "norm_act" for a fused layer, "norm" for a plain one that has a twin, None for any other."""
    if taken_names(module):
        return None
    cls = bare_class(type(module))
    if hasattr(module, "drop") and _known(cls, _FUSED) is not None:
        return "norm_act"
    return "norm" if _known(cls, _TWINS) is not None else None


def taken_names(module: nn.Module) -> list[str]:
    """The names that a mask needs and the norm already uses; [] if there is place for a mask.

    A plain norm gets ``drop`` and ``act`` and another class, so that it may have neither these attributes nor methods
    that its class has and the other one has not. And a forward of the instance's own would never call the mask.
    """
    cls = bare_class(type(module))
    names = ["forward"] if "forward" in vars(module) else []
    base = _known(cls, _TWINS)
    if base is not None and _known(cls, _FUSED) is None:
        names += [name for name in ("drop", "act") if hasattr(module, name)]
        names += [name for name in _defined_by_subclasses(cls, base) if name not in names]
    return names


def _defined_by_subclasses(cls: type[nn.Module], norm_class: type[nn.Module]) -> Iterator[str]:
    for base in cls.__mro__[: cls.__mro__.index(norm_class)]:
        yield from (name for name in vars(base) if name not in _HARMLESS)


def _known(cls: type[nn.Module], classes: Container[type[nn.Module]]) -> type[nn.Module] | None:
    """The one of ``classes`` whose arithmetic ``cls`` runs: itself, or the base whose forward it inherits."""
    return next(
        (base for base in cls.__mro__ if base in classes and getattr(base, "forward", None) is cls.forward), None
    )


def layout_of(module: nn.Module, ndim: int) -> Layout:
    """Memory order of what ``module`` normalises, given the number of dimensions with the batch."""
    if isinstance(module, _LAST_DIM) and not isinstance(module, _NOT_LAST_DIM):
        normalized: Any = module.normalized_shape
        if len(normalized) == 1:
            return "NHWC" if ndim == 4 else "NLC"
    return "NCHW"


def with_slot(norm: nn.Module) -> None:
    """Turn a plain norm into its fused twin, in place: the same object with ``.drop`` and ``.act``."""
    norm_class = _known(bare_class(type(norm)), _TWINS)
    assert norm_class is not None
    norm.__class__ = on_top_of(_TWINS[norm_class], type(norm))
    norm.drop = nn.Identity().train(norm.training)
    norm.act = nn.Identity().train(norm.training)
    # The plain norm never takes timm's reduced-precision path, unless it has decided for itself already.
    norm.__dict__.setdefault("_fast_norm", False)


def remove_slot(norm: nn.Module, plain: type[nn.Module]) -> None:
    """Undo :func:`with_slot`; ``plain`` is the class the norm had before, without its parametrisation."""
    del norm.drop, norm.act
    norm_class = _known(plain, _TWINS)
    assert norm_class is not None
    if norm_class not in _CHOOSE_PRECISION:
        norm.__dict__.pop("_fast_norm", None)
    twin = bare_class(type(norm))
    # A converter may have turned the twin into another class meanwhile; that one's own plain form is right then.
    if twin in _FUSED and twin is not _TWINS[norm_class]:
        plain = next(p for p, other in _TWINS.items() if other is twin)
    if twin in _FUSED:
        norm.__class__ = on_top_of(plain, type(norm))
