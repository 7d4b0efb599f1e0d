"""A tiny defective network, its classifiers and its images, for the tests of the ART adapter."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.adapters.art import DefectiveClassifier
from tests import toys

SHAPE, CLASSES = (1, 4, 4), 3


def defective(model: nn.Module | None = None, *, seed: int = 0, **options: Any) -> nn.Module:
    """toys.ModeNet with a mask behind its first norm, in eval mode."""
    net = toys.ModeNet() if model is None else model
    return dcn.defectify(net, ("norm",), 0.5, input_size=SHAPE, seed=seed, **options).eval()


def classifier(
    model: nn.Module | None = None, kind: type[PyTorchClassifier] = DefectiveClassifier, **options: Any
) -> PyTorchClassifier:
    net = defective() if model is None else model
    return kind(
        net, nn.CrossEntropyLoss(), SHAPE, CLASSES, **{"clip_values": (0.0, 1.0), "device_type": "cpu", **options}
    )


def samples(count: int = 8, *, seed: int = 0) -> npt.NDArray[np.float32]:
    return toys.images(count, seed=seed, shape=SHAPE).numpy()


def predicted(estimator: Any, x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    return np.asarray(estimator.predict(x)).argmax(axis=1)


def masks(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: m.mask.clone() for name, m in model.named_modules() if isinstance(m, dcn.DefectMask2d)}


def same_masks(a: nn.Module, b: nn.Module) -> bool:
    """Both have masks, at the same places, of the same bits."""
    one, other = masks(a), masks(b)
    return bool(one) and one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
