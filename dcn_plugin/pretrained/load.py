"""A pretrained network by its name."""

from __future__ import annotations

import os
from collections.abc import Callable

import timm
import torch
from torch import nn

from dcn_plugin.checkpoint.class_names import name_classes
from dcn_plugin.errors import CheckpointError, NotDefectiveError, PretrainedError
from dcn_plugin.layers import Normalized
from dcn_plugin.models import cifar_densenet, cifar_resnet, cifar_senet, cifar_vgg
from dcn_plugin.models import defective as _timm_models  # noqa: F401  (registers defective_<name> with timm)
from dcn_plugin.pretrained.cache import find_weights
from dcn_plugin.pretrained.card import PretrainedCard
from dcn_plugin.pretrained.registry import find_entry
from dcn_plugin.pretrained.storage import load_half
from dcn_plugin.specs import DefectSpec
from dcn_plugin.support.suggestions import closest
from dcn_plugin.surgery import defect_spec

__all__ = ["build_network", "load_pretrained"]

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "cifar_densenet": cifar_densenet,
    "cifar_resnet": cifar_resnet,
    "cifar_senet": cifar_senet,
    "cifar_vgg": cifar_vgg,
}


def load_pretrained(name: str, *, cache_dir: str | os.PathLike[str] | None = None, progress: bool = False) -> nn.Module:
    """Load a pretrained network; the global random state is left as it is.

    Args:
        name: one of :func:`list_pretrained`.
        cache_dir: where downloaded files are kept; by default ``checkpoints/dcn_plugin`` in
            :func:`torch.hub.get_dir`. The networks that come with the package need none.
        progress: show a progress bar of a download.

    Returns:
        The network in eval mode, float32 on the CPU: images in [0, 1] -> logits. Defective where its card says so.

    Raises:
        PretrainedError: there is none of that name, or its weights cannot be had; the error says what to do.
        CheckpointError: its file is damaged, or is not what its card says.
    """
    entry = find_entry(name)
    path = find_weights(entry.card, folder=entry.folder, cache_dir=cache_dir, progress=progress)
    network = load_half(path, build_network(entry.card))
    spec = _spec_of(network)
    if spec != entry.card.defects:
        raise CheckpointError(
            f"The masks in {path.name} are not those that the card of {name} describes.",
            _in_words(spec),
            _in_words(entry.card.defects),
            "correct the card: its defects are dcn_plugin.defect_spec(network)",
        )
    if entry.card.class_names is not None:
        name_classes(network, entry.card.class_names)
    return network.eval()


def build_network(card: PretrainedCard) -> nn.Module:
    """The network of a card as it is before its weights: random ones, no masks.

    Raises:
        PretrainedError: there is no such architecture, or it does not take these arguments.
    """
    build = _BUILDERS.get(card.architecture)
    if build is None and not timm.is_model(card.architecture):
        raise PretrainedError(
            f"The card of {card.name} names an architecture that is not known here.",
            card.architecture,
            f"{', '.join(_BUILDERS)}, or a name of timm's registry",
            closest(card.architecture, [*_BUILDERS, *timm.list_models()])
            or "install the package that registers it with timm",
        )
    try:
        with torch.random.fork_rng(devices=[]):
            network = (
                timm.create_model(card.architecture, **card.model_args) if build is None else build(**card.model_args)
            )
    except TypeError as error:
        raise PretrainedError(
            f"{card.architecture} does not take the arguments on the card of {card.name} ({error}).",
            dict(card.model_args),
        ) from error
    if card.normalization is None:
        return network
    return Normalized(network, card.normalization["mean"], card.normalization["std"])


def _spec_of(network: nn.Module) -> DefectSpec | None:
    try:
        return defect_spec(network)
    except NotDefectiveError:
        return None


def _in_words(spec: DefectSpec | None) -> str:
    if spec is None:
        return "no masks"
    return f"{len(spec.sites)} masks, p={spec.p_text}, seed {spec.seed}, {spec.mask_origin}"
