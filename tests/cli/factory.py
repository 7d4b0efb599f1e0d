"""Models that a user of the command line might have written."""

from __future__ import annotations

import torch
from torch import nn

from dcn_plugin.models import cifar_resnet
from tests.toys import linear_model


def linear(seed: int = 0) -> nn.Module:
    """For the digits at 8 x 8."""
    return linear_model(64, 10, seed=seed)


def resnet(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet((1, 1, 1, 1), in_chans=1, width=width)


def no_module() -> int:
    return 3
