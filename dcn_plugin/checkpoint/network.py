"""Checkpoints: the weights, the masks and the specification of a defective network in one sealed file.

Masks are stored as packed bits, which keeps the file within about one percent of the plain model's. A file
holds the network and not what is wrapped around it: torch.compile, DataParallel,
DistributedDataParallel and :class:`dcn_plugin.Normalized` are looked through in saving and in loading.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import timm.models
import torch
from torch import Tensor, nn

from dcn_plugin.checkpoint.class_names import check_class_names, class_names_of, name_classes
from dcn_plugin.checkpoint.sealed_file import RESERVED, Pathish, read_archive, ties, write_archive
from dcn_plugin.errors import CheckpointError, DcnError, MaskLostError, MaskStateError, NotDefectiveError, SpecError
from dcn_plugin.layers import DefectMask2d
from dcn_plugin.specs import DefectSpec, SiteSpec
from dcn_plugin.support.model_state import copy_of
from dcn_plugin.surgery import defect_spec, insert_masks, is_defective
from dcn_plugin.surgery.wrappers import Constants, bare, bare_name, bare_path, network_in, unwrap

__all__ = ["CheckpointInfo", "load_checkpoint", "read_info", "read_spec", "save_checkpoint"]

_RECORD = f"{RESERVED}.record"
_ADAPTED = "base_model.model."  # where peft.get_peft_model puts a network


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint says about itself, without its tensors.

    Args:
        parts: path of a module -> the specification it was made defective with; "" is the network itself. Empty
            for a network written by hand with :class:`dcn_plugin.DefectiveConv2d`.
        masks: path of a mask -> shape of its buffer.
        architecture: timm's name of the network, or None where it is not known.
        model_args: the arguments timm built it with, or None where they are not known or no JSON.
        normalization: mean and std of the :class:`dcn_plugin.Normalized` that was around it, or None.
        versions: package -> version that wrote the file.
        metadata: the caller's own entries.
        class_names: what its classes are called, in the order of the logits, or None where that is not known.
    """

    parts: Mapping[str, DefectSpec]
    masks: Mapping[str, tuple[int, ...]]
    architecture: str | None
    model_args: Mapping[str, Any] | None
    normalization: Mapping[str, list[float]] | None
    versions: Mapping[str, str]
    metadata: Mapping[str, str]
    class_names: tuple[str, ...] | None = None


def save_checkpoint(model: nn.Module, path: Pathish, *, metadata: Mapping[str, str] | None = None) -> None:
    """Save a defective network: weights, masks, specification, versions, and a SHA-256 over them.

    The write is atomic: ``path`` holds its old content or all of the new one. Equal content gives equal bytes.

    Args:
        model: defective, by :func:`dcn_plugin.defectify` or by hand.
        path: of the file, by convention ``*.safetensors``.
        metadata: entries of your own, text to text; :func:`read_info` gives them back.

    Raises:
        NotDefectiveError: ``model`` carries no masks.
        MaskLostError: a site of its specification has no mask any more.
        MaskStateError: a mask has other bits than its seed gives, and no state dict brought them.
        CheckpointError: its state dict holds something that safetensors cannot store.
        SpecError: ``metadata`` is not text to text, or uses a reserved name.
        OSError: the file cannot be written.

    Example:
        >>> dcn.save_checkpoint(net, "net.safetensors", metadata={"data": "digits"})
        >>> dcn.checkpoint.read_info("net.safetensors").metadata["data"]
        'digits'
    """
    entries = _check_metadata(metadata or {})
    with bare(model) as network:
        _save(network, path, entries, unwrap(model)[1])


def _save(network: nn.Module, path: Pathish, entries: Mapping[str, str], normalization: Constants | None) -> None:
    masks, parts = _masks(network), _parts(network)
    if not masks and not parts:
        raise NotDefectiveError(
            f"{type(network).__name__} carries no defect masks.",
            fix="call dcn_plugin.defectify(model, ...) first, or save plain weights with safetensors.torch.save_file",
        )
    bits = {name: mask.mask for name, mask in masks.items()}
    sites = _sites(parts, bits)
    lost = [site.name for name, (_, site) in sites.items() if name not in masks]
    if lost:
        raise MaskLostError(
            f"{len(lost)} of {len(sites)} sites of this {type(network).__name__} have no mask any more.",
            tuple(lost),
            "a mask at every site of its specification",
            "undo the conversion that dropped them, or call defectify() after it",
        )
    if strange := _strange(sites, bits):
        raise MaskStateError(
            f"{len(strange)} masks have other bits than their seed gives, and no state dict brought them.",
            tuple(strange),
            "the masks that defectify() made, or those of a state dict",
            "bring masks of your own with model.load_state_dict(...), which notes it in the specification; a copy of a "
            "network with gradual defects, such as an average, needs GradualDefects.follow(copy)",
        )
    record = {
        "parts": {name: json.loads(spec.to_json()) for name, spec in parts.items()},
        "masks": {name: list(mask.shape) for name, mask in bits.items()},
        "normalization": normalization,
        "versions": {name: _version(name) for name in ("dcn-plugin", "safetensors", "timm", "torch")},
        **_timm_origin(network),
    }
    if (names := class_names_of(network)) is not None:
        record["class_names"] = list(names)
    write_archive(path, network.state_dict(), {**entries, _RECORD: json.dumps(record, sort_keys=True)})


def load_checkpoint(path: Pathish, model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Load what :func:`save_checkpoint` wrote; the outputs are bit-equal to those of the network that was saved.

    Args:
        path: of the file. All of it is checked before anything is loaded; nothing in it is ever unpickled.
        model: the same architecture. Plain: it is made defective as the file says. Defective, with the same
            sites: weights and masks of the file win, and the specification says ``mask_origin="loaded"`` where that
            changed a mask. Device, memory format and training flags stay ``model``'s; its dtypes have to be the file's.
        inplace: change ``model`` itself and return it. If an error is raised, nothing has been changed.

    Returns:
        The defective network with the file's weights: a copy, or ``model``.

    Raises:
        CheckpointError: the file is damaged, of an unknown format, or does not fit ``model``.
        OSError: the file cannot be read.

    Example:
        >>> dcn.save_checkpoint(net, "net.safetensors")
        >>> loaded = dcn.load_checkpoint("net.safetensors", plain)
        >>> torch.equal(loaded(images), net(images))
        True
    """
    info, state = _read(path)
    # Whatever can go wrong goes wrong on a copy.
    loaded = copy_of(network_in(model) if inplace else model)
    _load(path, info, state, loaded)
    if inplace:
        _load(path, info, state, model)
        return model
    return loaded


def read_spec(path: Pathish) -> DefectSpec:
    """The specification in a checkpoint (of its first defective part); the whole file is checked.

    Raises:
        CheckpointError: the file is damaged, or its network was written by hand and has no specification.
        OSError: the file cannot be read.
    """
    info = read_info(path)
    for spec in info.parts.values():
        return spec
    raise CheckpointError(
        f"{os.fspath(path)} holds a network written by hand, without a DefectSpec.",
        tuple(info.masks)[:3],
        "a checkpoint of a model that defectify() made",
        "build the network from its own code and call load_checkpoint(path, model)",
    )


def read_info(path: Pathish) -> CheckpointInfo:
    """What a checkpoint says about itself; the whole file is checked.

    Raises:
        CheckpointError: the file is damaged, or of an unknown format.
        OSError: the file cannot be read.
    """
    return _read(path)[0]


def _read(path: Pathish) -> tuple[CheckpointInfo, dict[str, Tensor]]:
    state, metadata = read_archive(path)
    try:
        record = json.loads(metadata.pop(_RECORD))
        info = CheckpointInfo(
            parts={name: DefectSpec.from_json(json.dumps(spec)) for name, spec in record["parts"].items()},
            masks={name: tuple(shape) for name, shape in record["masks"].items()},
            architecture=record["architecture"],
            model_args=record["model_args"],
            normalization=record["normalization"],
            versions=record["versions"],
            metadata=metadata,
            class_names=check_class_names(record["class_names"]) if record.get("class_names") else None,
        )
        bits = {name: state[f"{name}.mask"] for name in info.masks}
        strange = _strange(_sites(info.parts, bits), bits)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise CheckpointError(f"The record in {os.fspath(path)} cannot be read ({reason}).") from error
    if strange:
        raise CheckpointError(
            f"{os.fspath(path)} contradicts itself: {len(strange)} masks are not those that its specification gives.",
            tuple(strange[:3]),
            "masks as the seed gives them, or a specification with mask_origin='loaded'",
            "save the model again with dcn_plugin.save_checkpoint",
        )
    return info, state


def _load(path: Pathish, info: CheckpointInfo, state: Mapping[str, Tensor], model: nn.Module) -> None:
    network, normalization = unwrap(model)
    if info.normalization and normalization and info.normalization != normalization:
        raise _misfit(
            path,
            "its network was saved inside a Normalized with other constants",
            normalization,
            f"build Normalized with {info.normalization}",
        )
    info, state = _without_levels(info, state, network)
    with bare(network):
        _fill(path, info, state, network)


def _without_levels(
    info: CheckpointInfo, state: Mapping[str, Tensor], network: nn.Module
) -> tuple[CheckpointInfo, Mapping[str, Tensor]]:
    """Files of earlier versions name the levels of parallel wrappers inside a network; take away those it has."""
    rename = functools.partial(bare_path, network)

    def rename_site(part: str, site: SiteSpec) -> SiteSpec:
        name, conv = (
            rename(f"{part}.{path}".removeprefix(".")).removeprefix(f"{rename(part)}.")
            for path in (site.name, site.conv)
        )
        return dataclasses.replace(site, name=name, conv=conv)

    parts = {
        rename(part): dataclasses.replace(spec, sites=tuple(rename_site(part, site) for site in spec.sites))
        for part, spec in info.parts.items()
    }
    masks = {rename(name): shape for name, shape in info.masks.items()}
    return dataclasses.replace(info, parts=parts, masks=masks), {rename(key): value for key, value in state.items()}


def _fill(path: Pathish, info: CheckpointInfo, state: Mapping[str, Tensor], network: nn.Module) -> None:
    if _is_adapted(state) and not _is_adapted(network.state_dict()):
        raise _misfit(
            path,
            "it holds a PeftModel, a network with adapters",
            type(network).__name__,
            "pass peft.get_peft_model(network, config) with the config of the adapters; or merge them before you save: "
            "save_checkpoint(model.merge_and_unload(), path)",
        )
    if is_defective(network):
        _check_sites(path, info, network)
    else:
        _insert(path, info, network)
    entries = network.state_dict()
    _check_entries(path, state, {bare_name(key): value for key, value in entries.items()}, type(network).__name__)
    network.load_state_dict({key: state[bare_name(key)] for key in entries})
    if info.class_names is not None:
        name_classes(network, info.class_names)


def _is_adapted(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of what ``peft.get_peft_model`` returns."""
    return bool(state) and all(key.startswith(_ADAPTED) for key in state)


def _insert(path: Pathish, info: CheckpointInfo, network: nn.Module) -> None:
    by_hand = sorted(info.masks.keys() - _sites(info.parts, info.masks).keys())
    if by_hand:
        raise _misfit(
            path,
            f"{len(by_hand)} of its masks were placed by hand ({', '.join(by_hand[:3])})",
            f"{type(network).__name__} without masks",
            "build the network with the same DefectiveConv2d or DefectMask2d layers",
        )
    try:
        for part, spec in info.parts.items():
            insert_masks(network.get_submodule(part), spec)
    except (AttributeError, DcnError) as error:
        raise _misfit(path, str(error).rstrip("."), type(network).__name__) from error


def _check_sites(path: Pathish, info: CheckpointInfo, network: nn.Module) -> None:
    theirs: set[tuple[object, ...]] = set(info.masks.items())
    ours: set[tuple[object, ...]] = {(name, tuple(mask.mask.shape)) for name, mask in _masks(network).items()}
    for places, parts in ((theirs, info.parts), (ours, _parts(network))):
        places |= {(part, site.name, site.shape, site.layout) for part, spec in parts.items() for site in spec.sites}
    if theirs != ours:
        file_only, model_only = sorted(theirs - ours, key=str), sorted(ours - theirs, key=str)
        raise _misfit(
            path,
            f"its masks sit at other places or have other shapes; only in the file: {file_only[:3]}",
            f"only in the model: {model_only[:3]}",
            "pass the plain model (dcn_plugin.undefectify gives it); it is made defective as the file says",
        )


def _check_entries(path: Pathish, state: Mapping[str, Tensor], entries: Mapping[str, Tensor], name: str) -> None:
    missing, unexpected = sorted(entries.keys() - state.keys()), sorted(state.keys() - entries.keys())
    if missing or unexpected:
        raise _misfit(
            path,
            f"{len(missing)} entries of the model are not in the file ({', '.join(missing[:3])}), "
            f"{len(unexpected)} of the file not in the model ({', '.join(unexpected[:3])})",
            name,
        )
    for what, of in (("shape", lambda t: tuple(t.shape)), ("dtype", lambda t: t.dtype)):
        wrong = {key: (of(state[key]), of(tensor)) for key, tensor in entries.items() if of(state[key]) != of(tensor)}
        if wrong:
            key, (theirs, ours) = next(iter(wrong.items()))
            raise _misfit(
                path,
                f"{len(wrong)} entries have another {what}, {key!r} {theirs} in the file and {ours} in the model",
                name,
                "build the model with the options of the one that was saved, and convert it before or after loading",
            )
    if meta := [key for key, tensor in entries.items() if tensor.is_meta]:
        raise _misfit(path, f"{len(meta)} entries of the model are on the meta device", name, "call to_empty() on it")
    if torn := [alias for alias, key in ties(entries).items() if not torch.equal(state[alias], state[key])]:
        raise _misfit(path, f"the model ties entries that have different values in the file ({torn[:3]})", name)


def _misfit(path: Pathish, reason: str, got: object, fix: str = "build the network that was saved") -> CheckpointError:
    return CheckpointError(
        f"{os.fspath(path)} does not fit this model: {reason}.", got, "the architecture and sites of the file", fix
    )


def _masks(network: nn.Module) -> dict[str, DefectMask2d]:
    return {bare_name(path): m for path, m in network.named_modules() if isinstance(m, DefectMask2d)}


def _parts(network: nn.Module) -> dict[str, DefectSpec]:
    """Path of a module that surgery made defective -> its specification."""
    return {
        bare_name(path): defect_spec(module)
        for path, module in network.named_modules()
        if "defect_spec" in module.__dict__
    }


def _sites(parts: Mapping[str, DefectSpec], masks: Collection[str]) -> dict[str, tuple[DefectSpec, SiteSpec]]:
    """Path of the mask -> its site, for every site that surgery filled."""
    sites = {}
    for part, spec in parts.items():
        for site in spec.sites:
            slot = f"{part}.{site.name}.drop".removeprefix(".")
            sites[f"{slot}.1" if f"{slot}.1" in masks else slot] = (spec, site)  # .1: behind a drop that was there
    return sites


def _strange(sites: Mapping[str, tuple[DefectSpec, SiteSpec]], bits: Mapping[str, Tensor]) -> list[str]:
    """The masks whose bits should be those of their seed and are not."""
    strange = []
    for name, (spec, site) in sites.items():
        if spec.mask_origin == "sampled" and not bits[name].is_meta:
            if math.prod(site.shape) != bits[name].numel():  # checked first: sampling takes memory
                strange.append(name)
                continue
            seeded = DefectMask2d(site.shape, site.mask, site=site.ordinal, layout=site.layout).mask
            if not torch.equal(seeded, bits[name].cpu()):
                strange.append(name)
    return strange


def _check_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    for key, value in metadata.items():
        reserved = key == "format" or str(key).startswith(RESERVED)
        if not isinstance(key, str) or not isinstance(value, str) or reserved:
            raise SpecError(
                "The metadata of a checkpoint is text to text.",
                {key: value},
                "str keys other than 'format' and 'dcn_plugin...', and str values",
                "encode other values yourself, e.g. with json.dumps",
            )
    return metadata


def _timm_origin(network: nn.Module) -> dict[str, Any]:
    """Name and arguments that build the network with timm, as far as they are known."""
    cfg = getattr(network, "pretrained_cfg", None)
    architecture = cfg.get("architecture") if isinstance(cfg, Mapping) else None
    args = None
    # Older versions of timm keep no arguments.
    if architecture and hasattr(network, "_model_args") and hasattr(timm.models, "get_model_args"):
        args = timm.models.get_model_args(network)
        try:
            json.dumps(args)
        except (TypeError, ValueError):
            args = None  # a class or function among them; half of the arguments would build another network
    return {"architecture": architecture, "model_args": args}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
