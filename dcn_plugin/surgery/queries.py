"""What a network says about its masks: whether it has any, which, where, and of what specification."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import nn

from dcn_plugin.errors import InputSizeError, NotDefectiveError, SpecError
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.specs import DefectSpec, check_chw

__all__ = [
    "check_model",
    "defect_spec",
    "expected_sites",
    "image_size",
    "is_defective",
    "masks_of",
    "owner_path",
]


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
            loaded = any(isinstance(m, DefectMask2d) and m.origin == "loaded" for m in module.modules())
            return dataclasses.replace(spec, mask_origin="loaded" if loaded else "sampled")
    raise NotDefectiveError(
        f"{type(model).__name__} was not made defective by defectify().",
        fix="call dcn_plugin.defectify(model, ...) first",
    )


def masks_of(model: nn.Module) -> dict[str, DefectMask2d]:
    """Module path -> mask.

    Raises:
        NotDefectiveError: there is none, and none is expected.
    """
    masks = {path: module for path, module in model.named_modules() if isinstance(module, DefectMask2d)}
    if not masks and not expected_sites(model):
        raise NotDefectiveError(
            f"{type(model).__name__} carries no defect masks.", fix="call dcn_plugin.defectify(model, ...) first"
        )
    return masks


def expected_sites(model: nn.Module) -> list[str]:
    """Names of the sites that the model's specification lists, [] for a network written by hand."""
    return [site.name for site in defect_spec(model).sites] if _has_spec(model) else []


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
