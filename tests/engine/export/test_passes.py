from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import dcn_plugin as dcn
from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.export import ExportModel, for_export
from dcn_plugin.engine.export.passes import factor_of, mask_nodes, move_masks
from tests.engine.export.nets import SIZE, images, mobile

aten: Any = torch.ops.aten


@pytest.fixture(scope="module")
def shown() -> ExportModel:
    return for_export(mobile(), show_masked=True)


def targets(model: ExportModel) -> list[Any]:
    return [node.target for node in model.network.graph.nodes if node.op == "call_function"]


def test_a_relu6_is_a_relu_behind_its_convolution_and_a_minimum_that_masks(shown: ExportModel) -> None:
    (minimum,) = (node for node in shown.network.graph.nodes if node.target is aten.minimum.default)
    relu, top = minimum.args
    assert relu.target is F.relu and relu.args[0].target is F.conv2d
    assert torch.equal(getattr(shown.network, top.target)[0] == 6, ~shown.dead["expand.1"])
    assert aten.hardtanh.default not in targets(shown)


def test_an_activation_that_is_no_relu_stays_behind_its_mask(shown: ExportModel) -> None:
    (silu,) = (node for node in shown.network.graph.nodes if node.target is F.silu)
    assert silu.args[0].target is operator.mul


def masked(act: nn.Module) -> nn.Module:
    conv = dcn.DefectiveConv2d(3, 4, 3, padding=1, output_size=12, site=0, p=0.5)
    return nn.Sequential(conv, act, nn.Conv2d(4, 2, 1)).eval()


@pytest.mark.parametrize(
    ("act", "moved"),
    [
        (nn.ReLU(), True),
        (nn.ReLU6(), True),
        (nn.Hardtanh(0.0, 2.5), True),
        (nn.Hardtanh(-1.0, 2.5), False),
        (nn.LeakyReLU(0.1), False),
        (nn.Sigmoid(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_mask_moves_behind_a_relu_bounded_or_not_and_no_value_changes(act: nn.Module, moved: bool) -> None:
    graph = capture(masked(act), SIZE)
    expected: Tensor = graph(images(2))
    (before,) = mask_nodes(graph.graph)
    move_masks(graph)
    assert torch.equal(graph(images(2)), expected)
    assert (before in list(graph.graph.nodes)) != moved
    (relu,) = [node for node in graph.graph.nodes if node.target is aten.relu.default] if moved else [None]
    assert relu is None or relu.args[0].target is aten.conv2d.default


def test_a_mask_that_two_operations_read_stays() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = dcn.DefectiveConv2d(3, 4, 3, padding=1, output_size=12, site=0, p=0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return torch.relu(x) - x

    graph = capture(Fork().eval(), SIZE)
    expected: Tensor = graph(images(2))
    move_masks(graph)
    assert torch.equal(graph(images(2)), expected)
    (mask,) = mask_nodes(graph.graph)
    assert len(mask.users) == 2


def test_a_product_with_other_numbers_is_no_mask() -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: Tensor) -> None:
            super().__init__()
            self.register_buffer("scale", scale)

        def forward(self, x: Tensor) -> Any:
            return x * self.scale

    def products(scale: Tensor) -> list[fx.Node]:
        nodes = capture(Scaled(scale), SIZE).graph.nodes
        return [node for node in nodes if factor_of(node) is not None]

    assert len(products(torch.ones(1, *SIZE))) == 1
    assert not products(torch.full((1, *SIZE), 0.5))
    assert not products(torch.ones(1, 3, 1, 1))
