"""Models that a user of the command line might have written."""

from __future__ import annotations

import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.attacks import DistilledSource
from dcn_plugin.models import cifar_resnet
from tests.toys import linear_model


def linear(seed: int = 0) -> nn.Module:
    """For the digits at 8 x 8."""
    return linear_model(64, 10, seed=seed)


def asked(seed: int = 0, answers: int = 30) -> nn.Module:
    """As if it had been trained on a target's answers."""
    return DistilledSource(linear(seed), target_queries=answers)


def resnet(width: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return cifar_resnet((1, 1, 1, 1), in_chans=1, width=width)


def defective(seed: int = 0) -> nn.Module:
    """For the digits at 8 x 8, with something to skip."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(128, 10)),
        )
    return dcn.defectify(net, blocks=["0", "3"], p=0.3, seed=seed, input_size=(1, 8, 8))


def no_module() -> int:
    return 3
