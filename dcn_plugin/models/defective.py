"""Defective versions of CNNs in timm's registry: ``timm.create_model("defective_resnet18", p=0.3, num_classes=10)``.

Importing this module registers one model a name of :data:`dcn_plugin.models.timm_names.BASES`. Each is built by
the base model's own entrypoint, so that every option of timm's works and a misspelt one is timm's
error. The order is always the same: the base model, its weights if there are any, the masks, other bits for
them if the weights bring some.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    get_arch_pretrained_cfgs,
    model_entrypoint,
    register_model,
    resolve_pretrained_cfg,
    split_model_name_tag,
)
from torch import Tensor, nn

from dcn_plugin.checkpoint.weights import fitting
from dcn_plugin.errors import InputSizeError
from dcn_plugin.models import paper_nets as _paper_nets  # noqa: F401  (registers those of BASES that are not timm's)
from dcn_plugin.models.timm_features import carry_over
from dcn_plugin.models.timm_names import BASES
from dcn_plugin.models.timm_weights import (
    NO_WEIGHTS,
    load_masks,
    settle_classes,
    split_masks,
    tell_unused,
    weight_source,
)
from dcn_plugin.specs import DefectSpec, Masks, Mode, Sampling, check_chw, mask_specs, plain_number
from dcn_plugin.surgery import insert_masks, plan_defects
from dcn_plugin.surgery.blocks import BlocksArg
from dcn_plugin.surgery.placement import freeze_blocks

# timm's register_model looks up both names in this module, and appends every model to __all__.
__all__ = ["default_cfgs"]
default_cfgs: dict[str, DefaultCfg] = {}
"""Model name -> timm's description of it, tag by tag, as in every model file of timm's."""

_PREFIX = "defective_"
# They speak of images of another size, or of a weight file that is no longer named.
_NO_LONGER_TRUE: dict[str, Any] = dict.fromkeys(
    ("test_input_size", "test_pool_size", "test_crop_pct", "min_input_size", "label_offset")
)
_ONLY_FOR_FEATURES = ("features_only", "out_indices", "feature_cls", "feature_cfg", "feature_location")
_ONLY_FOR_PLACEMENT = ("device", "dtype", "cache_dir")


def _register(base: str) -> None:
    def entrypoint(
        pretrained: bool = False,
        *,
        p: float | Mapping[str | int, float] = 0.3,
        blocks: BlocksArg = "bottom",
        mode: Mode = "neuron",
        sampling: Sampling = "bernoulli",
        seed: int = 0,
        span: int | None = None,
        img_size: int | Sequence[int] | None = None,
        init_from: Literal["base"] | None = None,
        **base_options: Any,
    ) -> nn.Module:
        if isinstance(p, Mapping):  # JSON, in which timm saves options, makes strings of block numbers
            p = {int(block) if isinstance(block, str) and block.isdigit() else block: keep for block, keep in p.items()}
        masks = mask_specs(p, mode=mode, sampling=sampling, seed=seed, span=span)
        return _build(base, pretrained, freeze_blocks(blocks), masks, img_size, init_from, base_options)

    name = _PREFIX + base
    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"""The CNN ``{base}`` with fixed masks of dead neurons.

    Args:
        pretrained: load weights that were trained with defects, from where ``pretrained_cfg_overlay=dict(file=...)``,
            a local directory or the Hub says. Weights without masks are taken too. They arrive whole: with another
            number of classes than ``num_classes`` they are refused, unless their description
            (``pretrained_cfg_overlay=dict(..., num_classes=...)``, or the tag's) says how many they have: then the
            classifier is new, as with every model of timm's, and the log says so.
        p: keep probability in (0, 1], or a mapping block -> p.
        blocks: "bottom", "top", "all", "paper", block numbers, or globs over module names.
        mode: "neuron", "channel", "shared", "hole" or "nm".
        sampling: "bernoulli" or "exact".
        seed: with the ordinal of a convolution it fixes every bit of its mask.
        span: pixels on a side of a hole ("hole"), or channels in a group ("nm"); only these modes take it.
        img_size: side or (H, W) of the images the masks are made for; by default the tag's.
        init_from: "base" starts from the base model's weights: of the same tag, or those that the overlay names.
        base_options: everything that ``{base}`` takes.
    """
    default_cfgs[name] = _without_weights(base)
    globals()[name] = register_model(entrypoint)


def _without_weights(base: str) -> DefaultCfg:
    """What timm says about the base model, tag by tag, without the places where its weights lie."""
    cfgs = {
        split_model_name_tag(name)[1]: dataclasses.replace(
            cfg, **NO_WEIGHTS, **_NO_LONGER_TRUE, custom_load=False, fixed_input_size=True
        )
        for name, cfg in get_arch_pretrained_cfgs(base).items()
    }
    return DefaultCfg(tags=deque(cfgs), cfgs=cfgs)


def _build(
    base: str,
    pretrained: bool,
    blocks: BlocksArg,
    masks: Masks,
    img_size: int | Sequence[int] | None,
    init_from: str | None,
    options: dict[str, Any],
) -> nn.Module:
    name = _PREFIX + base
    overlay = options.pop("pretrained_cfg_overlay", None)
    tell_unused(overlay, name, pretrained=pretrained, init_from=init_from)
    cfg = resolve_pretrained_cfg(name, options.pop("pretrained_cfg", None), overlay)
    options = {"in_chans": cfg.input_size[0], "num_classes": cfg.num_classes, **options}
    size = _input_size(cfg, img_size, options["in_chans"])
    features = bool(options.get("features_only"))
    saved = options.get("pretrained_model_args") or {}
    if init_from is not None and saved.get("init_from") == init_from:
        init_from = None  # timm repeats the options that a saved model was built with; its weights are in its own file
    bits: dict[str, Tensor] = {}
    source = weight_source(base, name, cfg, pretrained=pretrained, init_from=init_from)
    if source is not None:
        source, bits = split_masks(source, init_from=init_from, cache_dir=options.get("cache_dir"))
        classes = 0 if features else options["num_classes"]
        plain = {key: value for key, value in options.items() if key not in _ONLY_FOR_FEATURES}

        def try_whole(weights: PretrainedCfg, num_classes: int) -> None:
            with fitting(name):
                _build_base(base, weights, pretrained=True, options={**plain, "num_classes": num_classes})

        source = settle_classes(source, classes, name=name, try_whole=try_whole)
    with fitting(name):
        model = _build_base(base, source or cfg, pretrained=source is not None, options=options)
    if features:
        full = _build_full(base, cfg, options)
        spec = plan_defects(full, blocks, masks, input_size=size)
        model = carry_over(model, full, spec, bits)
    else:
        spec = plan_defects(model, blocks, masks, input_size=size)
        load_masks(insert_masks(model, spec), bits)
    _describe(model, name, cfg, spec, features=features)
    return model


def _input_size(cfg: PretrainedCfg, img_size: int | Sequence[int] | None, in_chans: int) -> tuple[int, int, int]:
    side = plain_number(cfg.input_size[1:] if img_size is None else img_size)
    if isinstance(side, int) and not isinstance(side, bool):
        side = (side, side)
    if not isinstance(side, Sequence) or isinstance(side, str) or len(side) != 2:
        raise InputSizeError("img_size is neither a side nor (H, W).", img_size, "e.g. 64 or (64, 96)")
    return check_chw((in_chans, *side))


def _build_base(base: str, cfg: PretrainedCfg, *, pretrained: bool, options: Mapping[str, Any]) -> nn.Module:
    # The base models take images of any size: they have no img_size option that timm could pass on.
    plain = dataclasses.replace(cfg, architecture=base, fixed_input_size=False)
    model: nn.Module = model_entrypoint(base)(pretrained=pretrained, pretrained_cfg=plain, **options)
    return model


def _build_full(base: str, cfg: PretrainedCfg, options: Mapping[str, Any]) -> nn.Module:
    """The network before truncation, for its structure only: on the CPU, without weights or a trace in the RNG."""
    dropped = _ONLY_FOR_FEATURES + _ONLY_FOR_PLACEMENT
    plain = {key: value for key, value in options.items() if key not in dropped}
    with torch.random.fork_rng(devices=[]):
        return _build_base(base, dataclasses.replace(cfg, **NO_WEIGHTS), pretrained=False, options=plain)


def _describe(model: nn.Module, name: str, cfg: PretrainedCfg, spec: DefectSpec, *, features: bool) -> None:
    """Write down what the model is where timm looks for it, so that a saved configuration rebuilds the same."""
    size = spec.input_size
    described = dataclasses.replace(
        cfg,
        **_NO_LONGER_TRUE,
        state_dict=None,
        architecture=name,
        input_size=size,
        fixed_input_size=True,
        pool_size=cfg.pool_size if size[1:] == tuple(cfg.input_size[1:]) else None,
    ).to_dict()
    if features:  # as timm does it: they have no classifier to speak of
        described = {key: value for key, value in described.items() if key not in ("num_classes", "classifier")}
    network: Any = model
    network.pretrained_cfg = network.default_cfg = described
    network._traits = {**getattr(model, "_traits", {}), "img_size": size[1:], "fixed_input_size": True}
    network._model_args = {**spec.options, "img_size": size[1:]}


for _base in BASES:
    _register(_base)
