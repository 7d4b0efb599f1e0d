"""A small network with what exports have to deal with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dcn_plugin as dcn

SIZE = (3, 12, 12)


class Mobile(nn.Module):
    """An inverted residual block with ReLU6, SiLU and a sum; its masks have more than 8,192 elements."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(3, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), nn.BatchNorm2d(64), nn.SiLU()
        )
        self.project = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64))
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)
        x = torch.relu(self.project(self.depthwise(x)) + x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def mobile() -> nn.Module:
    """A defective :class:`Mobile` in evaluation mode, with statistics and weights that are not those of a new one."""
    generator = torch.Generator().manual_seed(0)
    net = dcn.defectify(Mobile(), blocks="all", p=0.4, input_size=SIZE)
    with torch.no_grad():
        for name, value in (*net.named_parameters(), *net.named_buffers()):
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))
    return net.eval()


def images(count: int) -> Tensor:
    """Images for :func:`mobile`; large enough for ReLU6 to cut them."""
    return 4 * torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(1))
