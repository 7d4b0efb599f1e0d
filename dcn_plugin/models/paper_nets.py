"""The paper's six networks at CIFAR and MNIST size, registered with timm under names of their own.

``timm.create_model("resnet18_cifar", num_classes=10, width=16)``, or the function of that name. Every network has
two tags: ``cifar10`` (the default: 3x32x32 images) and ``mnist`` (1x28x28), with the statistics that the authors
normalise by, and no weights. ``width`` is the number of channels of the first stage in all six, 64 in the paper.
Where the paper masks them: ``blocks="paper"`` of :func:`dcn_plugin.defectify`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models.densenet import DenseNet
from timm.models.resnet import ResNet
from timm.models.resnetv2 import ResNetV2
from timm.models.vgg import VGG
from torch import nn

from dcn_plugin.checkpoint.weights import fitting
from dcn_plugin.errors import PretrainedError
from dcn_plugin.models.densenet import cifar_densenet
from dcn_plugin.models.parts import check_sizes
from dcn_plugin.models.resnet import cifar_resnet
from dcn_plugin.models.senet import cifar_senet
from dcn_plugin.models.timm_weights import NO_WEIGHTS, settle_classes, split_masks, tell_unused
from dcn_plugin.models.vgg import cifar_vgg

__all__ = ["default_cfgs"]

_Net = TypeVar("_Net", bound=nn.Module)
_NESTED = {"flatten_sequential": True}  # for timm's features_only: the stages are not the network's own children


def _cfgs(name: str, first_conv: str, classifier: str, pools: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """What timm wants to know of a network: the authors' normalisation, and the side of its last map at both sizes."""
    both = {"num_classes": 10, "interpolation": "bilinear", "crop_pct": 1.0}
    both |= {"first_conv": first_conv, "classifier": classifier}
    rgb = {"input_size": (3, 32, 32), "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
    grey = {"input_size": (1, 28, 28), "mean": (0.1307,), "std": (0.3081,)}
    return {
        f"{name}.{tag}": {**both, **images, "pool_size": (pool, pool)}
        for tag, images, pool in (("cifar10", rgb, pools[0]), ("mnist", grey, pools[1]))
    }


# timm's register_model looks it up in this module.
default_cfgs = generate_default_cfgs(
    {
        **_cfgs("resnet18_cifar", "conv1", "fc", (4, 4)),
        **_cfgs("resnet50_cifar", "conv1", "fc", (4, 4)),
        **_cfgs("densenet121_cifar", "features.conv0", "classifier", (4, 3)),
        **_cfgs("senet18_cifar", "stem.conv", "head.fc", (4, 4)),
        **_cfgs("vgg19_cifar", "features.0", "head.fc", (1, 1)),
        **_cfgs("wrn32_4_cifar", "conv1", "fc", (8, 7)),
    }
)


@register_model
def resnet18_cifar(pretrained: bool = False, **options: Any) -> ResNet:
    """ResNet-18: 11,173,962 parameters.

    Args:
        pretrained: load the weights that ``pretrained_cfg_overlay=dict(file=...)`` names; there are no others.
        options: of :func:`dcn_plugin.models.cifar_resnet` (``num_classes``, ``in_chans``, ``width``, ``widths``, ...)
            and of every timm entrypoint (``features_only``, ``pretrained_cfg``, ...).
    """
    return _create("resnet18_cifar", cifar_resnet, pretrained, {"layers": (2, 2, 2, 2), **options})


@register_model
def resnet50_cifar(pretrained: bool = False, **options: Any) -> ResNet:
    """ResNet-50: 23,520,842 parameters; arguments as in :func:`resnet18_cifar`."""
    options = {"layers": (3, 4, 6, 3), "block": "bottleneck", **options}
    return _create("resnet50_cifar", cifar_resnet, pretrained, options)


@register_model
def densenet121_cifar(pretrained: bool = False, **options: Any) -> DenseNet:
    """DenseNet-121, growth rate 32: 6,956,298 parameters.

    Args:
        pretrained: as in :func:`resnet18_cifar`.
        options: of :func:`dcn_plugin.models.cifar_densenet` and of every timm entrypoint.
    """
    return _create("densenet121_cifar", cifar_densenet, pretrained, options, _NESTED)


@register_model
def senet18_cifar(pretrained: bool = False, **options: Any) -> ResNetV2:
    """Pre-activation SENet-18: 11,260,354 parameters.

    Args:
        pretrained: as in :func:`resnet18_cifar`.
        options: of :func:`dcn_plugin.models.cifar_senet` and of every timm entrypoint.
    """
    return _create("senet18_cifar", cifar_senet, pretrained, options, _NESTED)


@register_model
def vgg19_cifar(pretrained: bool = False, **options: Any) -> VGG:
    """VGG-19 with batch norm and one linear layer: 20,040,522 parameters.

    Args:
        pretrained: as in :func:`resnet18_cifar`.
        options: of :func:`dcn_plugin.models.cifar_vgg` and of every timm entrypoint.
    """
    return _create("vgg19_cifar", cifar_vgg, pretrained, options, {**_NESTED, "out_indices": (0, 1, 2, 3, 4, 5)})


@register_model
def wrn32_4_cifar(pretrained: bool = False, **options: Any) -> ResNet:
    """Wide-ResNet-32 of width factor 4, post-activation: 7,400,026 parameters.

    Its ``width``, a multiple of 4, is that of layer1: 64; the stem has a quarter of it. Convolutions start from
    N(0, sqrt(2 / (k * k * out))). Other arguments as in :func:`resnet18_cifar`.
    """
    return _create("wrn32_4_cifar", _wide_resnet, pretrained, options, {"out_indices": (0, 1, 2, 3)})


def _wide_resnet(*, width: int = 64, num_classes: int = 10, in_chans: int = 3, **options: Any) -> ResNet:
    check_sizes("Wide-ResNet", num_classes=num_classes, in_chans=in_chans, width=width, multiple=4)
    widths = (width // 4, width, 2 * width, 4 * width)
    options = {"layers": (5, 5, 5), "widths": widths, **options}
    model = cifar_resnet(num_classes=num_classes, in_chans=in_chans, **options)
    model.init_weights(zero_init_last=False)  # timm's start of a ResNet is the one that the authors give this network
    return model


def _create(
    name: str,
    builder: Callable[..., _Net],
    pretrained: bool,
    options: dict[str, Any],
    feature_cfg: dict[str, Any] | None = None,
) -> _Net:
    given, overlay = options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None)
    tell_unused(overlay, name, pretrained=pretrained, init_from=None)
    cfg: PretrainedCfg = resolve_pretrained_cfg(name, given, overlay)
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise PretrainedError(
            f"No pretrained weights exist for {name}.",
            "pretrained=True",
            "a file of weights",
            "train it, or pass pretrained_cfg_overlay=dict(file='weights.safetensors')",
        )

    def build(weights: PretrainedCfg, kwargs: dict[str, Any]) -> _Net:
        with fitting(name):
            return build_model_with_cfg(
                builder,
                name,
                pretrained,
                pretrained_cfg=weights,  # type: ignore[arg-type]  # annotated as a dict, but this is what timm passes
                feature_cfg=dict(feature_cfg or {}),
                **kwargs,
            )

    where = {key: value for key, value in cfg.to_dict().items() if key in NO_WEIGHTS and key != "state_dict"}
    if pretrained:
        cfg, masks = split_masks(cfg, init_from=None, cache_dir=options.get("cache_dir"))
        if masks:
            raise PretrainedError(
                f"These are the weights of a defective network; {name} has no place for their masks.",
                f"{len(masks)} masks",
                "weights without masks",
                f"create defective_{name} with the same options",
            )
        features = ("features_only", "out_indices", "feature_cls", "feature_cfg")
        model_options = {key: value for key, value in options.items() if key not in features}
        classes = 0 if options.get("features_only") else options.get("num_classes", cfg.num_classes)
        cfg = settle_classes(
            cfg, classes, name=name, try_whole=lambda weights, n: build(weights, {**model_options, "num_classes": n})
        )
    model = build(cfg, options)
    if pretrained:  # say where the weights lie, as before they were read
        described: Any = model
        entries = {key: value for key, value in described.pretrained_cfg.items() if key != "state_dict"}
        described.pretrained_cfg = described.default_cfg = {**entries, **where}
    return model
