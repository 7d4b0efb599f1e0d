"""Turn a network into a defective one, and back."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dcn_plugin.blocks import BlocksArg, find_blocks
from dcn_plugin.convs import is_masked_conv, masked_conv_class, unmasked_conv_class
from dcn_plugin.errors import (
    AlreadyDefectiveError,
    InputSizeError,
    MaskStateError,
    NotDefectiveError,
    SiteError,
)
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.norms import is_norm, owns_output, remove_slot, slot_of, with_slot
from dcn_plugin.selection import FilterFn, choose_sites
from dcn_plugin.sites import find_sites
from dcn_plugin.specs import DefectSpec, MaskSpec, Mode, Sampling, SiteSpec, check_chw, freeze_p
from dcn_plugin.trace import trace_model

__all__ = [
    "defect_spec",
    "defectify",
    "expected_sites",
    "image_size",
    "insert_masks",
    "is_defective",
    "masks_of",
    "owner_path",
    "plan_defects",
    "undefectify",
]


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
    inplace: bool = False,
) -> nn.Module:
    """Make a network defective: a copy with a fixed binary mask behind the norms of the chosen blocks.

    The copy has the same class, child names, parameter names and state-dict keys, plus one
    ``...drop.mask`` a site. With p = 1 its outputs are bit-equal to the original's, in train and in eval.

    Args:
        model: any CNN. It is run once, in eval mode without gradients, to read its data flow.
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
        inplace: change ``model`` itself and return it.

    Returns:
        The defective network, on the device of ``model``.

    Raises:
        SpecError: p, mode, sampling, seed or span is not allowed, or two of them do not go together.
        InputSizeError: no input size is known, or the model does not accept images of it.
        BlockError: ``blocks`` names nothing, or "bottom" and "top" mean nothing in this network.
        SiteError: there is nothing to mask, or a chosen place cannot carry a mask.
        AlreadyDefectiveError: ``model`` carries masks.
        TraceError: the model's structure cannot be read.

    Source: paper, section 3.1, eq. (3)-(5); position and "bottom" as in the authors' code.
    """
    spec = plan_defects(
        model, blocks, p, mode, input_size=input_size, sampling=sampling, seed=seed, span=span, filter_fn=filter_fn
    )
    return insert_masks(model if inplace else copy.deepcopy(model), spec)


def plan_defects(
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
) -> DefectSpec:
    """What :func:`defectify` would do, without touching ``model``. Arguments and errors are its own."""
    template = MaskSpec(1.0, mode, sampling, seed, span)
    frozen_p = freeze_p(p, like=template)
    _check_not_defective(model)
    size = image_size(model, input_size)
    trace = trace_model(model, size, is_norm=is_norm)
    sites = choose_sites(
        model,
        # The authors also mask norms that no convolution owns; no other choice reaches those.
        find_sites(model, trace, unowned=blocks == "paper"),
        find_blocks(model, trace),
        chosen=blocks,
        p=frozen_p,
        template=template,
        filter_fn=filter_fn,
    )
    return DefectSpec(
        blocks=blocks if isinstance(blocks, str) else (blocks,) if isinstance(blocks, int) else tuple(blocks),
        p=frozen_p,
        mode=mode,
        sampling=sampling,
        seed=seed,
        input_size=size,
        sites=sites,
        span=span,
    )


def insert_masks(model: nn.Module, spec: DefectSpec) -> nn.Module:
    """Carry out a plan, in place.

    Args:
        model: has a module at every site of ``spec``, of the kind that the site says.
        spec: what :func:`plan_defects` returned, or what a checkpoint holds.

    Raises:
        AlreadyDefectiveError: ``model`` carries masks.
        SiteError: a site is not in this model.
    """
    _check_not_defective(model)
    owners = [_owner(model, site) for site in spec.sites]
    masks = [_make_mask(model, owner, site, spec) for owner, site in zip(owners, spec.sites, strict=True)]
    for owner, site, mask in zip(owners, spec.sites, masks, strict=True):
        _install(owner, site, mask)
    model.defect_spec = spec  # type: ignore[assignment]
    model.register_load_state_dict_pre_hook(_check_masks_in_state_dict)
    return model


def undefectify(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """The exact inverse of :func:`defectify`: the same weights without masks.

    Raises:
        NotDefectiveError: ``model`` carries no masks that surgery put there.
    """
    defect_spec(model)
    plain = model if inplace else copy.deepcopy(model)
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


def is_defective(model: nn.Module) -> bool:
    """Whether the model carries at least one defect mask."""
    return any(isinstance(module, DefectMask2d) for module in model.modules())


def defect_spec(model: nn.Module) -> DefectSpec:
    """The specification a model was made defective with (of its first defective part, if it is a wrapper).

    Raises:
        NotDefectiveError: surgery has not been here.
    """
    for module in model.modules():
        spec = module.__dict__.get("defect_spec")
        if isinstance(spec, DefectSpec):
            loaded = any(isinstance(m, DefectMask2d) and m.origin == "loaded" for m in module.modules())
            return dataclasses.replace(spec, mask_origin="loaded" if loaded else "sampled")
    raise NotDefectiveError(
        f"{type(model).__name__} was not made defective by defectify().",
        fix="call dcn_plugin.defectify(model, ...) first",
    )


def _check_masks_in_state_dict(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load rule: no mask keys = standard weights; all of them = they win; anything between is an error."""
    own = {f"{prefix}{path}.mask": mask for path, mask in masks_of(module).items()}
    missing = [key for key in own if key not in state_dict]
    if len(missing) == len(own):
        state_dict.update({key: mask.mask for key, mask in own.items()})
        return
    wrong = {
        key: (str(state_dict[key].dtype), tuple(state_dict[key].shape))
        for key, mask in own.items()
        if key in state_dict and (state_dict[key].dtype != torch.bool or state_dict[key].shape != mask.mask.shape)
    }
    if missing or wrong:
        raise MaskStateError(
            f"The state dict does not fit the masks of this {type(module).__name__}: {len(missing)} of {len(own)} are "
            f"missing, {len(wrong)} have another dtype or shape.",
            wrong or tuple(missing[:3]),
            "no mask keys at all (standard weights), or all of them, as bool and of the same shapes",
            "make the model defective as the checkpoint's was: same blocks, mode and input_size",
        )


def _check_not_defective(model: nn.Module) -> None:
    if is_defective(model):
        raise AlreadyDefectiveError(
            f"This {type(model).__name__} is defective already.",
            f"{sum(isinstance(m, DefectMask2d) for m in model.modules())} masks",
            "a model without masks",
            "call dcn_plugin.undefectify(model) first",
        )


def image_size(model: nn.Module, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """The (C, H, W) that was given, or that timm's ``pretrained_cfg`` names.

    Raises:
        InputSizeError: there is neither, or it is not three positive integers.
    """
    if given is not None:
        return check_chw(given)
    cfg = getattr(model, "pretrained_cfg", None)
    size = cfg.get("input_size") if isinstance(cfg, Mapping) else None
    if size is None:
        raise InputSizeError(
            f"The input size of {type(model).__name__} is not known, and masks have a size.",
            None,
            "input_size=(C, H, W)",
            "pass the size of the images the model will see, e.g. input_size=(3, 224, 224)",
        )
    return check_chw(tuple(size))


def masks_of(model: nn.Module) -> dict[str, DefectMask2d]:
    """Module path -> mask.

    Raises:
        NotDefectiveError: there is none, and none is expected.
    """
    found = {path: module for path, module in model.named_modules() if isinstance(module, DefectMask2d)}
    if not found and not expected_sites(model):
        raise NotDefectiveError(
            f"{type(model).__name__} carries no defect masks.", fix="call dcn_plugin.defectify(model, ...) first"
        )
    return found


def expected_sites(model: nn.Module) -> list[str]:
    """Names of the sites that the model's specification lists, [] for a network written by hand."""
    return [site.name for site in defect_spec(model).sites] if _has_spec(model) else []


def _has_spec(model: nn.Module) -> bool:
    return any("defect_spec" in module.__dict__ for module in model.modules())


def owner_path(model: nn.Module, path: str) -> str:
    """The owner of a mask: the module whose slot it sits in, past a Sequential that shares the slot."""
    parent = path.rpartition(".")[0]
    return parent.removesuffix(".drop") if isinstance(model.get_submodule(parent), nn.Sequential) else parent


def _owner(model: nn.Module, site: SiteSpec) -> nn.Module:
    try:
        owner = model.get_submodule(site.name)
    except AttributeError:
        owner = None
    fits = owner is not None and (isinstance(owner, nn.Conv2d) if site.slot == "conv" else slot_of(owner) == site.slot)
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
    mask.restores = None if site.slot == "norm_act" else type(owner)
    mask.train(owner.training)
    like = next((t for t in (*owner.parameters(), *owner.buffers())), None)
    if site.layout == "NCHW" and _is_channels_last(model, site.conv):
        mask.to(memory_format=torch.channels_last)
    return mask.to(like.device if like is not None else None)


def _is_channels_last(model: nn.Module, conv: str) -> bool:
    own = getattr(model.get_submodule(conv), "weight", None)
    # A 1x1 kernel, or a single channel, lies the same in both formats: then the rest of the network says it.
    for weight in (own, *model.parameters()):
        if isinstance(weight, Tensor) and weight.ndim == 4:
            last = weight.is_contiguous(memory_format=torch.channels_last)
            if last != weight.is_contiguous():
                return last
    return False


def _install(owner: nn.Module, site: SiteSpec, mask: DefectMask2d) -> None:
    if site.slot == "conv":
        owner.__class__ = masked_conv_class(type(owner))  # type: ignore[arg-type]
    elif site.slot == "norm":
        with_slot(owner)
    taken = getattr(owner, "drop", None)
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
