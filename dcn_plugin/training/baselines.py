"""The defences that defective networks are compared and combined with, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from dcn_plugin.checkpoint.train_config import TrainConfig, smoothing_for
from dcn_plugin.errors import SpecError
from dcn_plugin.models import regularize
from dcn_plugin.support.suggestions import check_known
from dcn_plugin.training.adversarial import StepImages, madry
from dcn_plugin.training.pubdef_config import pubdef

__all__ = ["BASELINES", "Baseline", "apply_baseline", "training_config", "training_hook"]


def _settings(**settings: Any) -> Mapping[str, Any]:
    return MappingProxyType(settings)


@dataclass(frozen=True)
class Baseline:
    """What one baseline changes; what is empty stays as it is in standard training.

    Args:
        regularizer: arguments of :func:`dcn_plugin.models.regularize`.
        true_class: target probability of the true class; see :func:`smoothing_for`.
        madry: arguments of :func:`madry`.
        pubdef: arguments of :func:`pubdef` beside the images.
    """

    regularizer: Mapping[str, Any] = field(default_factory=_settings)
    true_class: float = 1.0
    madry: Mapping[str, Any] = field(default_factory=_settings)
    pubdef: Mapping[str, Any] = field(default_factory=_settings)


BASELINES: Mapping[str, Baseline] = MappingProxyType(
    {
        "standard": Baseline(),
        "spatial-dropout": Baseline(regularizer=_settings(kind="spatial-dropout", keep=0.9)),
        "dropblock": Baseline(regularizer=_settings(kind="dropblock", keep=0.9, block_size=3)),
        "label-smoothing": Baseline(true_class=0.9),
        "madry": Baseline(madry=_settings(eps=8 / 255, steps=7, step_size=2 / 255)),
        "pubdef": Baseline(pubdef=_settings(weight=1.0, sampling="random", eps=8 / 255)),
    }
)
"""Those of the paper with the settings of its authors' code; adversarial training as in Madry et al. 2018; PubDef."""


def apply_baseline(name: str, model: nn.Module) -> nn.Module:
    """The network to train: a regularised copy, or ``model`` itself where the baseline changes no network.

    Args:
        name: one of :data:`BASELINES`.
        model: plain or defective.

    Raises:
        SpecError: the name is unknown.
        BlockError: the baseline is for ResNets and this is none.
    """
    baseline = _named(name)
    return regularize(model, **baseline.regularizer) if baseline.regularizer else model


def training_config(name: str, config: TrainConfig, *, num_classes: int) -> TrainConfig:
    """How to train it.

    Args:
        name: one of :data:`BASELINES`.
        config: of standard training.
        num_classes: of the data; label smoothing depends on it.

    Raises:
        SpecError: the name is unknown, or label smoothing needs more than one class.
    """
    baseline = _named(name)
    if baseline.true_class == 1:
        return config
    return dataclasses.replace(config, label_smoothing=smoothing_for(baseline.true_class, num_classes))


def training_hook(
    name: str, *, adversarial: Iterable[Tensor] | None = None, settings: Mapping[str, Any] | None = None
) -> StepImages | None:
    """What to pass to :func:`train` as ``step_images``.

    Args:
        name: one of :data:`BASELINES`.
        adversarial: for "pubdef", and for no other: see :func:`pubdef`.
        settings: in place of the baseline's own, e.g. ``{"eps": 0.3}`` for MNIST. The step of "madry" follows its eps.

    Returns:
        A hook, or None where the baseline has none.

    Raises:
        SpecError: the name or a setting is unknown, or images are missing or not wanted.
    """
    baseline = _named(name)
    defaults = baseline.madry or baseline.pubdef
    unknown = sorted((settings or {}).keys() - defaults.keys())
    if unknown:
        raise SpecError(f"The training of {name!r} has no such setting.", unknown, ", ".join(defaults) or "none")
    if bool(baseline.pubdef) != (adversarial is not None):
        raise SpecError(
            f"Baseline {name!r} and the attacked images do not go together.",
            None if adversarial is None else type(adversarial).__name__,
            "adversarial=[...] for 'pubdef', None for every other",
        )
    if adversarial is not None:
        return pubdef(adversarial, **{**defaults, **(settings or {})})
    if defaults and "eps" in (settings or {}):
        defaults = {name: value for name, value in defaults.items() if name != "step_size"}
    return madry(**{**defaults, **(settings or {})}) if defaults else None


def _named(name: str) -> Baseline:
    check_known("baseline", name, BASELINES)
    return BASELINES[name]
