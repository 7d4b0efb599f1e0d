"""What is done where oneDNN writes outside its memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.checkpoint.train_config import TrainConfig
from dcn_plugin.engine.capture import simplified, traced
from dcn_plugin.errors import SpecError
from dcn_plugin.experiments.scales import scale_for
from dcn_plugin.experiments.step_times import time_step
from dcn_plugin.support.onednn import check_channels_last, narrow_strided_conv, without_narrow_strides
from dcn_plugin.training.loop import train
from tests.nets import Residual
from tests.toys import image_set

CPU = torch.device("cpu")


def conv(channels: int, kernel: int = 1, stride: int | tuple[int, int] = 2, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(channels, 8, kernel, stride, **options)


@pytest.mark.parametrize(
    ("harmful", "layer"),
    [
        (True, conv(15)),
        (True, conv(3, stride=(1, 2))),
        (True, conv(3, padding="valid", stride=3)),
        (False, conv(16)),
        (False, conv(6, stride=1)),
        (False, conv(6, 3)),
        (False, conv(6, groups=2)),
        (False, conv(6, padding=1)),
    ],
)
def test_narrow_convolutions_with_a_stride_are_told_apart(harmful: bool, layer: nn.Module) -> None:
    assert narrow_strided_conv(nn.Sequential(nn.ReLU(), layer)) == ("1" if harmful else None)


def test_the_training_loop_refuses_them_in_channels_last() -> None:
    net = nn.Sequential(Residual(6, 8, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    config = TrainConfig(epochs=1, batch_size=10, channels_last=True)
    data = image_set(40, shape=(6, 8, 8))
    with pytest.raises(SpecError, match=r"issue 6035.*Got: '6 input.*Allowed: at least 16.*channels_last=False"):
        train(net, data, config)
    with pytest.raises(SpecError, match="6035"):
        time_step(net, torch.rand(2, 6, 8, 8), config)
    assert all(value.is_contiguous() for value in net.parameters())
    check_channels_last(net, torch.device("meta"))
    check_channels_last(dcn.defectify(Residual(16, 8, 2), p=0.5, input_size=(16, 8, 8), blocks=(0,)), CPU)


class Strided(nn.Module):
    """A 1x1 convolution with a stride, in a model."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x)
        return out


@pytest.mark.parametrize("stride", [2, (3, 1)])
def test_a_graph_without_them_computes_the_same(stride: int | tuple[int, int]) -> None:
    layer = conv(6, stride=stride).double()
    x = torch.rand(3, 6, 9, 8, dtype=torch.float64, requires_grad=True)
    graph = simplified(traced(Strided(layer), (6, 9, 8)), training=True)
    before, wanted = graph(x), [x, *layer.parameters()]
    gradients = torch.autograd.grad(before.square().sum(), wanted)
    nodes = len(graph.graph.nodes)
    without_narrow_strides(graph)
    assert len(graph.graph.nodes) == nodes + 2
    after = graph(x)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad(after.square().sum(), wanted), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    without_narrow_strides(graph)
    assert len(graph.graph.nodes) == nodes + 2


def test_recipes_of_narrow_networks_train_without_channels_last() -> None:
    assert not scale_for("small", "cifar10", {"width": 8}).training.channels_last
    assert scale_for("small", "cifar10", {"width": 16}).training.channels_last
