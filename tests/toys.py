"""Tiny models and image sets for tests of attacks, evaluators and reports."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcn_plugin.attacks import Attack, AttackRun
from dcn_plugin.data import ImageSet


def linear_model(
    features: int = 12, classes: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Flatten, then one linear layer: its loss gradient is known by hand. It says every class now and then."""
    layer = nn.Linear(features, classes, dtype=dtype)
    weight = torch.randn(classes, features, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight - weight.mean(dim=1, keepdim=True))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


class DoNothing(Attack):
    """Returns the images as they are: the attack that every test of an attack has to fail."""

    def perturb(self, run: AttackRun) -> Tensor:
        return run.images


class ModeNet(nn.Module):
    """Convolution, batch norm, dropout and a frozen batch norm: everything whose mode matters."""

    def __init__(self, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
        self.to(dtype)
        self.frozen.eval()
        self.conv.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.frozen(self.drop(torch.tanh(self.norm(self.conv(x)))))
        logits: Tensor = self.head(x.flatten(1))
        return logits


def images(
    count: int, *, seed: int = 0, shape: tuple[int, int, int] = (1, 4, 4), dtype: torch.dtype = torch.float32
) -> Tensor:
    """Images with pixels all over [0, 1], some exactly at 0 and at 1."""
    generator = torch.Generator().manual_seed(seed)
    return (1.4 * torch.rand(count, *shape, generator=generator, dtype=dtype) - 0.2).clamp(0, 1)


def image_set(count: int = 40, *, classes: int = 3, seed: int = 0, shape: tuple[int, int, int] = (1, 4, 4)) -> ImageSet:
    """An image set of noise with random labels."""
    labels = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed + 1))
    return ImageSet(images(count, seed=seed, shape=shape), labels, classes, "noise")
