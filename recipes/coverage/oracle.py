"""What a defective network should compute, worked out without the package's own code.

The plain network is run with forward hooks that zero neurons; nothing of `dcn_plugin` but the list of
sites is used: the bits are drawn here again, and a fused norm + activation is recomputed from torch's
functions with the mask between its two halves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import timm.layers as tl
import torch
import torch.nn.functional as F
from timm.layers.norm_act import LayerNormAct2dFp32, LayerNormActFp32
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


def leaves(output: Any) -> list[Tensor]:
    """All tensors of a model's output, whatever holds them."""
    plain = dict(output) if hasattr(output, "items") else output
    found = [leaf for leaf in tree_leaves(plain) if isinstance(leaf, Tensor)]
    held = [v for leaf in tree_leaves(plain) if hasattr(leaf, "__dict__") for v in vars(leaf).values()]
    return found or [v for v in held if isinstance(v, Tensor)]


@torch.no_grad()
def observe(model: nn.Module, images: Tensor) -> list[Tensor]:
    """All tensors that a model puts out, and those of its backbone: a detector that finds nothing puts out nothing."""
    inner: list[Tensor] = []
    backbone = getattr(model, "backbone", None)
    watched = backbone.register_forward_hook(lambda _, __, out: inner.extend(leaves(out))) if backbone else None
    try:
        return leaves(model(images)) + inner
    finally:
        if watched is not None:
            watched.remove()


@torch.no_grad()
def oracle_output(model: nn.Module, sites: list[Any], images: Tensor) -> list[Tensor]:
    """Run the plain ``model`` with a hook at every site.

    Args:
        model: without masks, in eval mode.
        sites: objects with name, conv, ordinal, shape, layout, slot and mask, as in a ``DefectSpec``.

    Raises:
        AssertionError: an ordinal is not that of its convolution.
    """
    calls = _ConvCalls(model)
    with contextlib.ExitStack() as undo:
        for site in sites:
            hook = _hook(_bits(site), fused=site.slot == "norm_act")
            undo.callback(model.get_submodule(site.name).register_forward_hook(hook).remove)
        undo.enter_context(calls.watching())
        undo.enter_context(calls)
        out = observe(model, images)
    for site in sites:
        assert calls.paths[site.ordinal] == site.conv, f"convolution {site.ordinal} is {calls.paths[site.ordinal]}"
    return out


def _bits(site: Any) -> Tensor:
    """The mask of a site with mode "neuron" and Bernoulli sampling, in the layout of its activation."""
    channels, height, width = site.shape
    stream = np.random.Philox(key=np.array([site.mask.seed, site.ordinal], dtype=np.uint64))
    uniform = (stream.random_raw(channels * height * width) >> np.uint64(11)) / 2.0**53
    kept = torch.from_numpy(uniform < site.mask.p).reshape(channels, height, width)
    if site.layout == "NCHW":
        return kept
    last = torch.einsum("chw->hwc", kept.to(torch.uint8)).bool()
    return last if site.layout == "NHWC" else last.reshape(height * width, channels)


def _hook(kept: Tensor, *, fused: bool) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not fused:
            return output * kept
        act: Any = module.act
        return act(_normalised(module, args[0]) * kept)

    return hook


def _normalised(norm: Any, x: Tensor) -> Tensor:
    """The arithmetic of timm's fused layers without their activation, from torch's functions alone."""
    if isinstance(norm, nn.BatchNorm2d):
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    if isinstance(norm, nn.GroupNorm):
        return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    if isinstance(norm, tl.LayerNormAct2d | LayerNormAct2dFp32):
        last = F.layer_norm(x.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return last.permute(0, 3, 1, 2)
    if isinstance(norm, tl.LayerNormAct | LayerNormActFp32):
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    raise AssertionError(f"the oracle does not know {type(norm).__name__}")


class _ConvCalls(TorchFunctionMode):
    """Lists the module path of every call of ``conv2d``, in the order of execution."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.filters = {buffer.data_ptr() for buffer in model.buffers()}  # blur pools have no learned weight
        self.paths: list[str] = []
        self.stack = [""]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d and args[1].data_ptr() not in self.filters:
            self.paths.append(self.stack[-1])
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Follow which module is running."""

        def left(*_: Any) -> None:
            self.stack.pop()

        handles: list[Any] = []
        for path, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, path=path: self.stack.append(path)))
            handles.append(module.register_forward_hook(left))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
