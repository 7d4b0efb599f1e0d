"""timm's ``features_only=True`` for defective models: the truncated network gets the masks of the full one.

Blocks mean something only on the full network, so the masks are planned there and carried over by matching
module paths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from timm.models import FeatureGraphNet, FeatureHookNet
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from dcn_plugin.errors import SiteError
from dcn_plugin.models.timm_weights import load_masks
from dcn_plugin.specs import DefectSpec, SiteSpec
from dcn_plugin.surgery import insert_masks, masks_of
from dcn_plugin.surgery.norm_slots import slot_of

__all__ = ["carry_over", "full_paths"]


def carry_over(features: nn.Module, full: nn.Module, spec: DefectSpec, masks: Mapping[str, Tensor]) -> nn.Module:
    """Make a truncated network defective.

    Args:
        features: what timm returns with ``features_only=True``, without masks; changed in place.
        full: the same network before truncation, without masks; it is used up.
        spec: the plan for ``full``.
        masks: bits for ``full`` that win over the planned ones, by state-dict key; may be empty.

    Returns:
        The defective truncated network; ``features`` itself but for timm's fx variant, which is traced anew.

    Raises:
        SiteError: the two networks do not match, or no mask lies in the truncated one.
        MaskStateError: ``masks`` does not fit ``full``.
    """
    if isinstance(features, FeatureGraphNet):
        # fx has dissolved the modules into one graph, so the full network is made defective and traced again.
        weights = {key.removeprefix("graph_module."): value for key, value in features.state_dict().items()}
        full.load_state_dict(weights, strict=False)
        load_masks(insert_masks(full, spec), masks)
        chosen = features.feature_info.out_indices
        return FeatureGraphNet(full, chosen, output_fmt=features.output_fmt, return_dict=features.return_dict)
    place = {full_path: path for path, full_path in full_paths(features, full).items()}
    sites = tuple(_moved(site, place, features) for site in spec.sites if site.name in place)
    if not sites:
        raise SiteError(
            f"None of the {len(spec.sites)} masks of {type(full).__name__} lies in the part that out_indices keeps.",
            spec.blocks,
            fix="keep deeper features, or choose lower blocks",
        )
    load_masks(insert_masks(full, spec), masks)
    insert_masks(features, dataclasses.replace(spec, sites=sites))
    bits = {mask.site: mask.mask for mask in masks_of(full).values()}
    load_masks(features, {f"{path}.mask": bits[mask.site] for path, mask in masks_of(features).items()})
    return features


def full_paths(features: nn.Module, full: nn.Module) -> dict[str, str]:
    """Find every module of a truncated network in the full one.

    Returns:
        Path in ``features`` -> path in ``full``. Modules without tensors of their own may be missing.

    Raises:
        SiteError: a module with tensors of its own has no counterpart of the same class and shapes.
    """
    root = ""
    if isinstance(features, FeatureGetterNet):
        root = "model."
    elif isinstance(features, FeatureHookNet) and list(features) == ["body"]:
        root = "body."
    # Where timm flattens the first level, "a.0" has become "a_0".
    heads = {f"{a}_{b}": f"{a}.{b}" for a, child in full.named_children() for b, _ in child.named_children()}
    heads.update({name: name for name, _ in full.named_children()})
    theirs = dict(full.named_modules())
    paths: dict[str, str] = {}
    for path, module in features.named_modules():
        head, dot, rest = path.removeprefix(root).partition(".")
        whole = bool(root) and path == root.rstrip(".")  # a few networks have tensors of their own at the top
        full_path = "" if whole else heads.get(head, head) + dot + rest
        if (whole or path.startswith(root)) and _match(module, theirs.get(full_path)):
            paths[path] = full_path
        elif _shapes(module):
            raise SiteError(
                f"{path!r} of the {type(features).__name__} has no exact counterpart in the full network.",
                type(module).__name__,
                f"a {type(module).__name__} at {full_path!r} with tensors of the same shapes",
                "use timm's default feature_cls, or forward_intermediates() of the full model",
            )
    return paths


def _moved(site: SiteSpec, place: Mapping[str, str], features: nn.Module) -> SiteSpec:
    norm_slot = slot_of(features.get_submodule(place[site.name]))
    return dataclasses.replace(site, name=place[site.name], conv=place[site.conv], slot=norm_slot or "conv")


def _match(module: nn.Module, full: nn.Module | None) -> bool:
    if full is None or _shapes(module) != _shapes(full):
        return False
    # timm's MobileNetV3Features has a plain norm and an activation where MobileNetV3 has the two fused.
    return type(module) is type(full) or (slot_of(module) is not None and slot_of(full) is not None)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return {name: tuple(tensor.shape) for name, tensor in tensors}
