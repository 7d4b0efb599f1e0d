"""What a network says about its masks: whether it has any, which, where, and of what specification."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import nn

from dcn_plugin.errors import InputSizeError, NotDefectiveError, SpecError
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.specs import DefectSpec, MaskSpec, SiteSpec, check_chw

__all__ = [
    "check_model",
    "defect_spec",
    "expected_layers",
    "expected_sites",
    "image_size",
    "is_defective",
    "masks_in",
    "masks_of",
    "note_layers",
    "owner_path",
    "specified_layers",
]

_NOTE = "defect_layers"


def check_model(model: object) -> None:
    """Check that a model is a network.

    Raises:
        SpecError: it is not a ``torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        name = isinstance(model, str)
        raise SpecError(
            "The model is not a network.",
            model if name else type(model).__name__,
            "a torch.nn.Module",
            f"build it first, e.g. timm.create_model({model!r})" if name else "pass the network itself",
        )


def is_defective(model: nn.Module) -> bool:
    """Whether the model carries at least one defect mask.

    Raises:
        SpecError: it is not a network.

    Example:
        >>> dcn.is_defective(timm.create_model("defective_resnet18_cifar", p=0.3))
        True
    """
    check_model(model)
    return any(isinstance(module, DefectMask2d) for module in model.modules())


def defect_spec(model: nn.Module) -> DefectSpec:
    """The specification a model was made defective with (of its first defective part, if it is a wrapper).

    While its masks are on their way to their goal (:class:`dcn_plugin.training.GradualDefects`), the keep probabilities
    are those that they have now.

    Raises:
        NotDefectiveError: surgery has not been here.
        SpecError: it is not a network.

    Example:
        >>> dcn.defect_spec(timm.create_model("defective_resnet18_cifar", p=0.3)).p
        0.3
    """
    check_model(model)
    for module in model.modules():
        spec = module.__dict__.get("defect_spec")
        if isinstance(spec, DefectSpec):
            masks = [m for m in module.modules() if isinstance(m, DefectMask2d)]
            loaded = any(m.origin == "loaded" for m in masks)
            return dataclasses.replace(_at_present(spec, masks), mask_origin="loaded" if loaded else "sampled")
    raise NotDefectiveError(
        f"{type(model).__name__} was not made defective by defectify().",
        fix="call dcn_plugin.defectify(model, ...) first",
    )


def _at_present(spec: DefectSpec, masks: list[DefectMask2d]) -> DefectSpec:
    """The specification with the keep probabilities that the masks say themselves, where all else is as it says."""
    present = {(mask.site_spec.name, *_stream(mask.spec)): mask.spec for mask in masks if mask.site_spec is not None}
    sites = tuple(
        site if mask == site.mask else dataclasses.replace(site, mask=mask)
        for site in spec.sites
        for mask in (present.get((site.name, *_stream(site.mask)), site.mask),)
    )
    return spec if sites == spec.sites else dataclasses.replace(spec, sites=sites, p=_p_of_sites(sites))


def _stream(mask: MaskSpec) -> tuple[object, ...]:
    """All that says how a mask is drawn, but for its p."""
    return mask.mode, mask.sampling, mask.seed, mask.span


def _p_of_sites(sites: tuple[SiteSpec, ...]) -> float | tuple[tuple[str | int, float], ...]:
    """The keep probability of all sites alike, or of each block; of each site where those of a block differ."""
    blocks = dict.fromkeys((site.block, site.mask.p) for site in sites)
    if len({p for _, p in blocks}) == 1:
        return sites[0].mask.p
    alike = len({block for block, _ in blocks}) == len(blocks)
    return tuple(blocks) if alike else tuple((site.name, site.mask.p) for site in sites)


def masks_of(model: nn.Module) -> dict[str, DefectMask2d]:
    """Module path -> mask.

    Raises:
        NotDefectiveError: there is none, and none is expected.
    """
    masks = masks_in(model)
    if not masks and not expected_layers(model):
        raise NotDefectiveError(
            f"{type(model).__name__} carries no defect masks.", fix="call dcn_plugin.defectify(model, ...) first"
        )
    return masks


def masks_in(model: nn.Module) -> dict[str, DefectMask2d]:
    """Module path -> mask, of a network that may have none."""
    return {path: module for path, module in model.named_modules() if isinstance(module, DefectMask2d)}


def expected_sites(model: nn.Module) -> list[str]:
    """Names of the sites that the model's specification lists, [] for a network written by hand."""
    return [site.name for site in defect_spec(model).sites] if _has_spec(model) else []


def expected_layers(model: nn.Module) -> dict[str, str]:
    """Path -> name to show, of every layer that has to carry a mask: those of all specifications and notes in it.

    The paths are those at which the layers were when the network was made defective, or when its masks were noted
    (:func:`note_layers`). What a tool puts around a layer stands at that path now.
    """
    layers = specified_layers(model)
    for part, module in model.named_modules():
        noted = (f"{part}.{path}".strip(".") for path in module.__dict__.get(_NOTE, ()))
        layers |= {path: path for path in noted if path not in layers}
    return layers


def specified_layers(model: nn.Module) -> dict[str, str]:
    """The part of :func:`expected_layers` that specifications say."""
    specs = {part: m.__dict__["defect_spec"] for part, m in model.named_modules() if "defect_spec" in m.__dict__}
    layers = {}
    for part, spec in specs.items():
        for site in spec.sites if isinstance(spec, DefectSpec) else ():
            path = f"{part}.{site.name}".strip(".")
            layers[path] = site.name if len(specs) == 1 else path
    return layers


def note_layers(model: nn.Module, layers: Iterable[str]) -> None:
    """Write down on a network written by hand which of its layers carry masks; no specification says it.

    The note travels with copies and pickles of the network, as a specification does.

    Args:
        layers: their paths.
    """
    noted = tuple(layers)
    if noted and noted != model.__dict__.get(_NOTE):
        model.__dict__[_NOTE] = noted


def _has_spec(model: nn.Module) -> bool:
    return any("defect_spec" in module.__dict__ for module in model.modules())


def owner_path(model: nn.Module, path: str) -> str:
    """The owner of a mask: the module whose slot it sits in, past a Sequential that shares the slot."""
    parent = path.rpartition(".")[0]
    return parent.removesuffix(".drop") if isinstance(model.get_submodule(parent), nn.Sequential) else parent


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
            "pass the size of the images the model will see, e.g. input_size=(3, 224, 224), or example_inputs=",
        )
    return check_chw(tuple(size))
