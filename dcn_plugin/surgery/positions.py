"""Where masks have to be, and where they are now that tools have put other modules around the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from dcn_plugin.layers import DefectMask2d
from dcn_plugin.surgery.queries import owner_path

__all__ = ["carrier_of", "layers_of_masks", "stands_at"]


def carrier_of(model: nn.Module, path: str) -> str:
    """Path of the module that carries a mask in its slot ``drop``; of the mask itself where it is a layer of its own.

    Args:
        model: the network.
        path: of the mask.
    """
    owner = owner_path(model, path)
    return owner if f"{path}.".startswith(f"{owner}.drop.".lstrip(".")) else path


def layers_of_masks(model: nn.Module, masks: Mapping[str, DefectMask2d], expected: Mapping[str, str]) -> dict[str, str]:
    """Which layer each mask is the mask of.

    Args:
        model: the network.
        masks: path -> mask.
        expected: path -> name, of the layers that have to carry masks; see
            :func:`dcn_plugin.surgery.queries.expected_layers`.

    Returns:
        Path of the mask -> path of its layer, which is one of ``expected`` where it can be: no layer stands there
        twice. A mask may be deeper than its layer was: what is around it stands in the place of the layer now.
    """
    owners = {path: carrier_of(model, path) for path in masks}
    layers = {path: owner for path, owner in owners.items() if owner in expected}
    for layer, name in expected.items():
        if layer in layers.values():
            continue
        free = [path for path in masks if path not in layers]
        deeper = (path for path in free if _length_of_way(layer, owners[path]) is not None)
        renamed = (path for path in free if (site := masks[path].site_spec) is not None and site.name == name)
        if (path := next(deeper, next(renamed, None))) is not None:
            layers[path] = layer
    return {path: layers.get(path, _adapted(model, owner)) for path, owner in owners.items()}


def stands_at(model: nn.Module, layer: str, owner: str) -> nn.Module:
    """What stands in the place of a layer: the owner of its mask, or the module that a tool has put around that.

    Args:
        model: the network.
        layer: path at which the layer was.
        owner: path of the module that owns the mask now.
    """
    length = _length_of_way(layer, owner)
    return model.get_submodule(owner if length is None else ".".join(_parts(owner)[:length]))


def _length_of_way(layer: str, owner: str) -> int | None:
    """How far down the path of ``owner`` one has passed all of the path of ``layer``; None where that never happens."""
    names, length = _parts(owner), 0
    for name in _parts(layer):
        if name not in names[length:]:
            return None
        length = names.index(name, length) + 1
    return length


def _parts(path: str) -> list[str]:
    return path.split(".") if path else []


def _adapted(model: nn.Module, owner: str) -> str:
    """Path of the layer of a mask of which nothing is noted: the owner, or the adapter that peft has put around it."""
    module, path = model.get_submodule(owner), owner
    for parent in _parents(owner):
        base = getattr(model.get_submodule(parent), "get_base_layer", None)
        if not callable(base) or base() is not module:
            break
        path = parent
    return path


def _parents(path: str) -> Iterable[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path
