"""Weights for a timm model: where they come from, and what happens to the masks and the classifier among them.

timm's loader does the work: all its sources, its key filters, its adaptation to other numbers of channels. The base
model has no place for masks, so they are taken out before and put in after. timm decides by a description of the
weights whether their classifier is loaded; here the weights themselves decide (:func:`settle_classes`).
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import PretrainedCfg, load_pretrained, resolve_pretrained_cfg
from torch import Tensor, nn

from dcn_plugin.checkpoint.weights import read_weights
from dcn_plugin.errors import MaskStateError, PretrainedError, SpecError
from dcn_plugin.surgery import masks_of

__all__ = [
    "NO_WEIGHTS",
    "load_masks",
    "settle_classes",
    "split_masks",
    "tell_unused",
    "weight_source",
]

_log = logging.getLogger(__name__)

NO_WEIGHTS: dict[str, Any] = dict.fromkeys(
    ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source"),
)
"""The fields of a ``PretrainedCfg`` that say where weights lie, emptied."""

_MASK_KEY = re.compile(r"(^|\.)drop(\.\d+)?\.mask$")


class _StateDictReader(nn.Module):
    """Stands in for a model in timm's ``load_pretrained``, which alone knows all the places weights come from."""

    read: dict[str, Tensor]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self.read = dict(state_dict)
        return nn.modules.module._IncompatibleKeys([], [])


def weight_source(
    base: str, name: str, cfg: PretrainedCfg, *, pretrained: bool, init_from: str | None
) -> PretrainedCfg | None:
    """Say which weights to load.

    Args:
        base: name of the base model.
        name: name of the defective one.
        cfg: the defective model's description, with what the caller laid over it.
        pretrained: the caller wants weights that were trained with defects.
        init_from: "base": the caller wants the base model's; from ``cfg`` if it names a place, else timm's own.

    Returns:
        The description of the weights, None for a random start.

    Raises:
        SpecError: ``init_from`` is unknown.
        PretrainedError: there are no such weights.
    """
    if init_from not in (None, "base"):
        raise SpecError("Unknown init_from.", init_from, "None, 'base'")
    if init_from is None and not pretrained:
        return None
    source = cfg if init_from is None or _has_weights(cfg) else resolve_pretrained_cfg(base, cfg.tag)
    if not _has_weights(source):
        tag = f".{cfg.tag}" if cfg.tag else ""
        raise PretrainedError(
            f"No {'pretrained weights' if init_from else 'weights trained with defects'} exist for "
            f"{base if init_from else name}{tag}.",
            f"init_from={init_from!r}" if init_from else "pretrained=True",
            "a model and tag with weights, or a file of them",
            "pass pretrained_cfg_overlay=dict(file='weights.safetensors')"
            + ("" if init_from else ", or init_from='base' instead of pretrained=True for the base model's weights"),
        )
    return source


def tell_unused(overlay: Mapping[str, Any] | None, name: str, *, pretrained: bool, init_from: str | None) -> None:
    """Warn in the log where the caller names weights and asks for none: timm would say nothing and start at random."""
    named = [key for key, value in (overlay or {}).items() if key in NO_WEIGHTS and value]
    if named and not pretrained and init_from is None:
        _log.warning(
            "%s starts from random numbers: pretrained_cfg_overlay names weights (%s), but nothing asks for them; "
            "pass pretrained=True too.",
            name,
            ", ".join(named),
        )


def split_masks(
    source: PretrainedCfg, *, init_from: str | None, cache_dir: str | Path | None
) -> tuple[PretrainedCfg, dict[str, Tensor]]:
    """Read the weights that ``source`` names.

    Returns:
        The same description with the weights in memory, and the masks that were among them.

    Raises:
        PretrainedError: there is no file of that name, or there are masks, although the base model's weights were
            asked for.
        CheckpointError: the file is a damaged one of :func:`dcn_plugin.save_checkpoint`.
    """
    if _is_file(source) and not Path(str(source.file)).is_file():
        raise PretrainedError("There is no weight file at this path.", source.file, "a .safetensors or .pth file")
    if source.custom_load:  # a foreign format, which holds no masks
        return source, {}
    state = _read(source, cache_dir)
    masks = {key: value for key, value in state.items() if _MASK_KEY.search(key)}
    if masks and init_from is not None:
        raise PretrainedError(
            "These are the weights of a defective network; the base model has no place for their masks.",
            f"init_from={init_from!r}, {len(masks)} masks",
            "weights without masks",
            "pass pretrained=True instead of init_from, and the masks are loaded too",
        )
    weights = {key: value for key, value in state.items() if key not in masks}
    return dataclasses.replace(source, **{**NO_WEIGHTS, "state_dict": weights}), masks


def settle_classes(
    source: PretrainedCfg, num_classes: int, *, name: str, try_whole: Callable[[PretrainedCfg, int], object]
) -> PretrainedCfg:
    """Decide what becomes of the classifier among the weights: it is loaded, left out on request, or refused.

    ===================================================  ==============================================
    the weights have                                     what happens
    ===================================================  ==============================================
    as many classes as the model                         all of them are loaded
    another number, and their description says so        timm's fine-tuning: a new classifier, and the
                                                         log says so; everything else has to fit
    another number than model and description say        an error
    no classifier, or the model has none                 as timm does it
    ===================================================  ==============================================

    timm alone goes by the description, which is ImageNet's until somebody says otherwise: it would leave out the
    classifier of a file of 10 classes for a model of 10 classes, without a word.

    Args:
        source: the weights, in memory (:func:`split_masks`), and their description.
        num_classes: of the model, 0 where it has no classifier.
        name: of the model, for messages.
        try_whole: builds the model from weights with all their classes, as a test; gets both.

    Returns:
        A description under which timm does that.

    Raises:
        PretrainedError: the numbers of classes do not agree.
        CheckpointError: the rest of the weights does not fit.
    """
    heads = (source.classifier,) if isinstance(source.classifier, str) else tuple(source.classifier or ())
    kernels = [f"{head}.weight" for head in heads if f"{head}.weight" in (source.state_dict or {})]
    if source.custom_load or not kernels:
        return source
    state: dict[str, Any] = dict(source.state_dict or {})
    described = dataclasses.replace(source, num_classes=len(state[kernels[0]]) - (source.label_offset or 0))
    has = described.num_classes
    if num_classes and has not in (num_classes, source.num_classes):
        raise PretrainedError(
            f"The weights have {has} classes, and {name} is asked for with {num_classes}.",
            {"weights": has, "num_classes": num_classes},
            "the number of classes that the weights have",
            f"pass num_classes={has}; for a new classifier of {num_classes} classes on these weights, say how many "
            f"they have: num_classes={num_classes}, pretrained_cfg_overlay=dict(..., num_classes={has})",
        )
    if has == num_classes:
        return described
    with torch.random.fork_rng(devices=[]):  # timm does not look at the rest where it leaves out the classifier
        try_whole(dataclasses.replace(described, state_dict=dict(state)), has)
    if num_classes:
        _log.warning(
            "The weights have %d classes, %s has %d: its classifier starts from random numbers.", has, name, num_classes
        )
    rest = {key: value for key, value in state.items() if key.rpartition(".")[0] not in heads}
    return dataclasses.replace(described, state_dict=rest)


def _is_file(source: PretrainedCfg) -> bool:
    return bool(source.file) and not source.state_dict and source.source != "local-dir"


def _read(source: PretrainedCfg, cache_dir: str | Path | None) -> dict[str, Tensor]:
    if _is_file(source):
        return read_weights(str(source.file))  # more kinds of files than timm knows, ours among them
    reader = _StateDictReader()
    # Without these two timm adapts nothing yet; it does so when the base model is built.
    load_pretrained(reader, {**source.to_dict(), "first_conv": None, "classifier": None}, cache_dir=cache_dir)
    return reader.read


def load_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Put the masks of a file in: they win over those that the seed gives. No masks change nothing.

    Args:
        model: defective.
        masks: state-dict key -> bits; all of the model's, or none.

    Raises:
        MaskStateError: some are missing, there are others besides, or shape or dtype differ.
    """
    unknown = set(masks) - {f"{path}.mask" for path in masks_of(model)}
    if unknown:
        raise MaskStateError(
            f"The weights hold {len(unknown)} masks for which this {type(model).__name__} has no place.",
            tuple(sorted(unknown)[:3]),
            "masks at exactly the places that blocks= chooses, or none at all",
            "build the model with the blocks, mode and img_size that the weights were trained with",
        )
    if masks:
        model.load_state_dict(masks, strict=False)  # surgery's hook is strict about masks all the same


def _has_weights(cfg: PretrainedCfg) -> bool:
    return bool(cfg.has_weights or cfg.state_dict)
