"""Turn a network into a defective one, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dcn_plugin.errors import (
    AlreadyDefectiveError,
    DeadSiteWarning,
    InputSizeError,
    MaskStateError,
    PlacementWarning,
    SiteError,
    SpecError,
    warn_caller,
)
from dcn_plugin.layers import DefectMask2d, as_bits, owns_output
from dcn_plugin.specs import DefectSpec, Masks, MaskSpec, Mode, Sampling, SiteSpec, check_chw, mask_specs, p_of
from dcn_plugin.support.model_state import copy_of, is_empty
from dcn_plugin.surgery.blocks import BlocksArg, find_blocks
from dcn_plugin.surgery.masked_conv import is_masked_conv, masked_conv_class, taken_by_conv, unmasked_conv_class
from dcn_plugin.surgery.norm_slots import is_norm, remove_slot, slot_of, with_slot
from dcn_plugin.surgery.parametrized import bare_class
from dcn_plugin.surgery.placement import FilterFn, choose_sites, freeze_blocks
from dcn_plugin.surgery.queries import (
    check_model,
    defect_spec,
    image_size,
    is_defective,
    masks_of,
    owner_path,
)
from dcn_plugin.surgery.sites import find_sites
from dcn_plugin.surgery.trace import ExampleInputs, ModelInputs, Trace, trace_model
from dcn_plugin.surgery.wrappers import bare, on_bare_network

_PACKED = (
    "these masks are packed, as save_checkpoint writes them: read the file with "
    "dcn_plugin.load_checkpoint(path, model), or in timm.create_model with "
    "pretrained=True, pretrained_cfg_overlay=dict(file=path), not with checkpoint_path"
)

__all__ = ["defectify", "insert_masks", "plan_defects", "undefectify"]


def defectify(
    model: nn.Module,
    blocks: BlocksArg = "bottom",
    p: float | Mapping[str | int, float] = 0.3,
    mode: Mode = "neuron",
    *,
    input_size: tuple[int, int, int] | None = None,
    sampling: Sampling = "bernoulli",
    seed: int = 0,
    span: int | None = None,
    filter_fn: FilterFn | None = None,
    example_inputs: ExampleInputs | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Make a network defective: a copy with a fixed binary mask behind the norms of the chosen blocks.

    The copy has the same class, child names, parameter names and state-dict keys, plus one
    ``...drop.mask`` a site. With p = 1 its outputs are bit-equal to the original's, in train and in eval.

    Args:
        model: any CNN. It is run once, in eval mode without gradients, to read its data flow. ``torch.compile``,
            ``DataParallel``, ``DistributedDataParallel`` and ``Normalized`` around it, or the first three around
            modules inside, stay where they are; blocks, names and masks are those of the network without them.
        blocks: "bottom" (first half of the blocks, rounded up), "top" (the rest), "all", "paper" (the authors'
            placement, for their architectures), block numbers (0 = stem), or globs over module names.
        p: keep probability in (0, 1], or a mapping block -> p with an entry for every chosen block.
        mode: "neuron" (the paper's), "channel", "shared", "hole" (square holes of ``span`` pixels a side) or "nm" (at
            each position, ``p * span`` of every ``span`` channels stay); see :class:`dcn_plugin.MaskSpec`.
        input_size: (C, H, W) of the images; masks have a size. Taken from timm's ``pretrained_cfg`` when absent.
        sampling: "bernoulli" (the paper's text) or "exact" (exactly ``round((1 - p) * N)`` zeros).
        seed: with the ordinal of a convolution it fixes every bit of its mask.
        span: size of a hole, or of a group of channels; for "hole" and "nm", which need it.
        filter_fn: ``(module, name) -> bool``, asked for every chosen site with its norm (or convolution).
        example_inputs: for a network that takes more than one batch of images: what it is called with, as a tuple of
            positional arguments or a dict of keyword arguments. ``input_size`` is that of the first (N, C, H, W) in it.
        inplace: change ``model`` itself and return it.

    Returns:
        The defective network, on the device of ``model``; masks of a network without weights (on the meta device) lie
        on the CPU.

    Raises:
        SpecError: p, mode, sampling, seed or span is not allowed, or two of them do not go together; or ``model`` is no
            network.
        InputSizeError: no input size is known, or the model does not accept images of it.
        BlockError: ``blocks`` names nothing, or "bottom" and "top" mean nothing in this network.
        SiteError: there is nothing to mask, or a chosen place cannot carry a mask.
        AlreadyDefectiveError: ``model`` carries masks.
        TraceError: the model's structure cannot be read.

    Warns:
        PlacementWarning: the network is a transformer or mixer, and only its patch embedding is masked.
        DeadSiteWarning: a site keeps none of its neurons.

    Example:
        >>> net = dcn.defectify(timm.create_model("resnet18", num_classes=10), p=0.3, input_size=(3, 64, 64))
        >>> len(dcn.summary(net).rows)
        10

    Source: paper, section 3.1, eq. (3)-(5); position and "bottom" as in the authors' code.
    """
    masks = mask_specs(p, mode=mode, sampling=sampling, seed=seed, span=span)
    spec = plan_defects(model, blocks, masks, input_size=input_size, filter_fn=filter_fn, example_inputs=example_inputs)
    return insert_masks(model if inplace else copy_of(model), spec)


@on_bare_network
def plan_defects(
    model: nn.Module,
    blocks: BlocksArg = "bottom",
    masks: Masks | None = None,
    *,
    input_size: tuple[int, int, int] | None = None,
    filter_fn: FilterFn | None = None,
    example_inputs: ExampleInputs | None = None,
) -> DefectSpec:
    """What :func:`defectify` would do, without touching ``model``. Other arguments, errors and warnings are its own.

    Args:
        masks: how they are drawn, or block -> how those of that block are drawn; None: as defectify's defaults say.
    """
    check_model(model)
    masks = MaskSpec() if masks is None else masks
    chosen = freeze_blocks(blocks)
    if filter_fn is not None and not callable(filter_fn):
        raise SpecError("filter_fn is not a function.", filter_fn, "(module, name) -> bool, or None")
    _check_not_defective(model)
    _check_two_dimensional(model)
    inputs = None if example_inputs is None else ModelInputs.of(example_inputs)
    size = _size_of(model, input_size, inputs)
    # Shapes are all that a plan needs: a network whose weights are still to come is read on the meta device.
    if is_empty(model):
        ghost, inputs = copy_of(model).to("meta"), inputs and inputs.on_meta()
        trace = trace_model(ghost, size, is_norm=is_norm, inputs=inputs)
    else:
        trace = trace_model(model, size, is_norm=is_norm, inputs=inputs)
    # The authors also mask norms that no convolution owns; no other choice reaches those.
    candidates = find_sites(model, trace, unowned=chosen == "paper")
    sites = choose_sites(model, candidates, find_blocks(model, trace), chosen=chosen, masks=masks, filter_fn=filter_fn)
    if len(candidates) == 1:
        _warn_if_only_an_embedding(model, trace, candidates[0].conv)
    _warn_of_three_dimensions(model)
    options = {**dataclasses.asdict(sites[0].mask), "p": p_of(masks)}
    return DefectSpec(blocks=chosen, input_size=size, sites=sites, **options)


def insert_masks(model: nn.Module, spec: DefectSpec) -> nn.Module:
    """Carry out a plan, in place.

    Args:
        model: has a module at every site of ``spec``, of the kind that the site says.
        spec: what :func:`plan_defects` returned, or what a checkpoint holds.

    Raises:
        AlreadyDefectiveError: ``model`` carries masks.
        SiteError: a site is not in this model.

    Warns:
        DeadSiteWarning: a site keeps none of its neurons.
    """
    with bare(model) as network:
        _insert_masks(network, spec)
    return model


def _insert_masks(model: nn.Module, spec: DefectSpec) -> None:
    _check_not_defective(model)
    if not isinstance(getattr(model, "defect_spec", None), DefectSpec | None):
        raise SiteError(
            f"{type(model).__name__} has an attribute 'defect_spec' of its own, where the specification has to go.",
            fix="give it another name",
        )
    owners = [_owner(model, site) for site in spec.sites]
    masks = [_make_mask(model, owner, site, spec) for owner, site in zip(owners, spec.sites, strict=True)]
    for owner, site, mask in zip(owners, spec.sites, masks, strict=True):
        _install(owner, site, mask)
    model.defect_spec = spec  # type: ignore[assignment]
    model.register_load_state_dict_pre_hook(_check_masks_in_state_dict)
    _warn_of_dead_sites(spec, masks)


def undefectify(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The exact inverse of :func:`defectify`: the same weights without masks.

    Raises:
        NotDefectiveError: ``model`` carries no masks that surgery put there.

    Example:
        >>> plain = dcn.undefectify(net)
        >>> dcn.is_defective(net), dcn.is_defective(plain)
        (True, False)
    """
    defect_spec(model)
    plain = model if inplace else copy_of(model)
    for owner, mask in _owners(plain):
        if mask.site_spec is not None:
            _remove(owner, mask)
    for module in plain.modules():
        if "defect_spec" in module.__dict__:
            del module.defect_spec
            hooks = module._load_state_dict_pre_hooks
            for key in [k for k, hook in hooks.items() if getattr(hook, "hook", None) is _check_masks_in_state_dict]:
                del hooks[key]
    return plain


def _check_masks_in_state_dict(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load rule: no mask keys = standard weights; all of them = they win; anything between is an error."""
    masks = {f"{prefix}{path}.mask": mask for path, mask in masks_of(module).items()}
    missing = [key for key in masks if key not in state_dict]
    if len(missing) == len(masks):
        state_dict.update({key: mask.mask for key, mask in masks.items()})
        return
    wrong = {
        key: (str(state_dict[key].dtype), tuple(state_dict[key].shape))
        for key, mask in masks.items()
        if key in state_dict and state_dict[key].shape != mask.mask.shape
    }
    if missing or wrong:
        raise MaskStateError(
            f"The state dict does not fit the masks of this {type(module).__name__}: {len(missing)} of {len(masks)} "
            f"are missing, {len(wrong)} have another shape.",
            wrong or tuple(missing[:3]),
            "no mask keys at all (standard weights), or all of them, of the same shapes",
            _PACKED
            if any(dtype == "torch.uint8" and len(shape) == 1 for dtype, shape in wrong.values())
            else "make the model defective as the checkpoint's was: same blocks, mode and input_size",
        )
    state_dict.update({key: as_bits(state_dict[key], key) for key in masks})  # all of them, before anything is loaded


def _check_two_dimensional(model: nn.Module) -> None:
    convs = {type(m).__name__: m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)}
    kernels = {parameter.ndim - 2 for m in convs.values() for parameter in m.parameters(recurse=False)} - {-1}
    if convs and kernels <= {1, 3} and kernels and not any(p.ndim == 4 for p in model.parameters()):
        raise SiteError(
            f"{type(model).__name__} has no 2-D convolution, and only these carry masks.",
            ", ".join(convs),
            "networks with nn.Conv2d, on images (N, C, H, W)",
        )


def _warn_of_three_dimensions(model: nn.Module) -> None:
    """Warn of a network that convolves volumes as well as images: the volumes keep all of their neurons."""
    volumes = [name for name, m in model.named_modules() if isinstance(m, nn.Conv3d)]
    if volumes:
        warn_caller(
            f"{type(model).__name__} has {len(volumes)} 3-D convolutions, {volumes[0]!r} the first of them. Only 2-D "
            "ones carry masks: what these compute keeps all of its neurons.",
            PlacementWarning,
        )


def _warn_if_only_an_embedding(model: nn.Module, trace: Trace, conv: str) -> None:
    """Warn of a network whose one convolution is followed by layers over tokens: a transformer, or a mixer."""
    batch = trace.nodes[0].shape[0]
    layers = sum(n.op in ("addmm", "mm", "linear") and math.prod(n.shape[:-1]) > batch for n in trace.nodes)
    if layers > 1:
        warn_caller(
            f"{type(model).__name__} has one convolution that can carry a mask, {conv!r}, and {layers} linear layers "
            "over tokens behind it. The method masks the bottom half of a convolutional network; here only the patch "
            "embedding is masked, and the paper says nothing about that.",
            PlacementWarning,
        )


def _warn_of_dead_sites(spec: DefectSpec, masks: list[DefectMask2d]) -> None:
    bits = [mask.mask for mask in masks]
    dead = [site for site, keep in zip(spec.sites, bits, strict=True) if not keep.is_meta and not bool(keep.any())]
    if dead:
        shown = ", ".join(f"{site.name!r} ({'x'.join(map(str, site.shape))}, p={site.mask.p:g})" for site in dead[:3])
        warn_caller(
            f"{len(dead)} of {len(masks)} sites keep none of their neurons: {shown}. What lies behind them alone does "
            "not see the image. Take a larger p, another seed, sampling='exact', or larger images.",
            DeadSiteWarning,
        )


def _check_not_defective(model: nn.Module) -> None:
    if is_defective(model):
        raise AlreadyDefectiveError(
            f"This {type(model).__name__} is defective already.",
            f"{sum(isinstance(m, DefectMask2d) for m in model.modules())} masks",
            "a model without masks",
            "call dcn_plugin.undefectify(model) first",
        )


def _size_of(model: nn.Module, given: tuple[int, int, int] | None, inputs: ModelInputs | None) -> tuple[int, int, int]:
    if inputs is None:
        return image_size(model, given)
    if given is not None and check_chw(given) != inputs.size:
        raise InputSizeError(
            "input_size is not the size of the images in example_inputs.",
            given,
            str(inputs.size),
            "leave input_size out",
        )
    return inputs.size


def _owner(model: nn.Module, site: SiteSpec) -> nn.Module:
    try:
        owner = model.get_submodule(site.name)
    except AttributeError:
        owner = None
    if site.slot == "conv":
        fits = isinstance(owner, nn.Conv2d) and not taken_by_conv(owner)
    else:
        fits = owner is not None and slot_of(owner) == site.slot
    if owner is None or not fits:
        raise SiteError(
            f"{type(model).__name__} has no place for a mask at {site.name!r}.",
            "no such module" if owner is None else type(owner).__name__,
            f"a module with a {site.slot!r} slot",
            "use the architecture that the specification was made for",
        )
    return owner


def _make_mask(model: nn.Module, owner: nn.Module, site: SiteSpec, spec: DefectSpec) -> DefectMask2d:
    inplace = site.slot == "conv" or owns_output(owner)
    mask = DefectMask2d(site.shape, site.mask, site=site.ordinal, layout=site.layout, inplace=inplace)
    mask.site_spec = site
    mask.made_for = "x".join(map(str, spec.input_size))
    mask.restores = None if site.slot == "norm_act" else bare_class(type(owner))
    mask.train(owner.training)
    like = next((t for t in (*owner.parameters(), *owner.buffers())), None)
    if site.layout == "NCHW" and _is_channels_last(model, site.conv):
        mask.to(memory_format=torch.channels_last)
    # Weights may still have to come, or lie elsewhere between two calls. No file has to bring the bits of a mask.
    return mask if like is None or like.is_meta else mask.to(like.device)


def _is_channels_last(model: nn.Module, conv: str) -> bool:
    # A 1x1 kernel, or a single channel, lies the same in both formats: then the rest of the network says it. Not the
    # attribute "weight": where it is parametrised, reading it may compute, and change what it is computed from.
    for weight in (*model.get_submodule(conv).parameters(), *model.parameters()):
        if weight.ndim == 4:
            last = weight.is_contiguous(memory_format=torch.channels_last)
            if last != weight.is_contiguous():
                return last
    return False


def _install(owner: nn.Module, site: SiteSpec, mask: DefectMask2d) -> None:
    if site.slot == "conv":
        owner.__class__ = masked_conv_class(type(owner))  # type: ignore[arg-type]
    elif site.slot == "norm":
        with_slot(owner)
    taken = getattr(owner, "drop", None)  # of a fused norm: a drop layer of its own, or nothing to speak of
    owner.drop = mask if taken is None or isinstance(taken, nn.Identity) else nn.Sequential(taken, mask)


def _owners(model: nn.Module) -> list[tuple[nn.Module, DefectMask2d]]:
    return [(model.get_submodule(owner_path(model, path)), mask) for path, mask in masks_of(model).items()]


def _remove(owner: nn.Module, mask: DefectMask2d) -> None:
    if is_masked_conv(owner):
        plain = unmasked_conv_class(type(owner))
        del owner.drop
        owner.__class__ = plain
    elif mask.restores is not None:
        remove_slot(owner, mask.restores)
    else:
        owner.drop = owner.drop[0] if isinstance(owner.drop, nn.Sequential) else nn.Identity()
