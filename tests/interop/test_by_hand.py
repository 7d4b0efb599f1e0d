"""The matrix once more, in short, for a network written with DefectiveConv2d."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dcn_plugin as dcn

IMAGES = torch.linspace(-2, 2, 2 * 3 * 16 * 16).mul(37).sin().view(2, 3, 16, 16)


class ByHand(nn.Module):
    """Returns the logits and both masked activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = dcn.DefectiveConv2d(
            3, 8, 3, padding=1, output_size=(16, 16), site=0, seed=3, norm=nn.BatchNorm2d(8)
        )
        self.conv2 = dcn.DefectiveConv2d(8, 8, 3, stride=2, padding=1, output_size=(8, 8), site=1, seed=3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one = self.conv1(x)
        two = self.conv2(torch.relu(one))
        return self.head(torch.relu(two).mean((2, 3))), one, two


@pytest.fixture
def net() -> Any:
    torch.manual_seed(0)
    net = ByHand()
    net(IMAGES)
    return net.eval()


def assert_silent_and_equal(tool: Callable[..., Any], net: Any, *, atol: float = 0.0) -> None:
    found, expected = tool(IMAGES), net(IMAGES)
    for site, (out, shape) in enumerate(zip(found[1:], [(8, 16, 16), (8, 8, 8)], strict=True)):
        kept = dcn.sample_mask(dcn.MaskSpec(seed=3), shape, site=site)
        assert (out[:, ~kept] == 0).all() and (out[:, kept] != 0).any()
    assert all(torch.allclose(a, b, rtol=0, atol=atol) for a, b in zip(found, expected, strict=True))


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": lambda net: net,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "timm SyncBN": convert_sync_batchnorm,
    "torch SyncBN": nn.SyncBatchNorm.convert_sync_batchnorm,
    "split-BN": lambda net: convert_splitbn_model(net).eval(),
    "freeze": freeze_batch_norm_2d,
    "channels_last": lambda net: net.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("tool", COPIES)
def test_copies_and_converters(net: Any, tool: str) -> None:
    converted = COPIES[tool](copy.deepcopy(net))
    assert_silent_and_equal(converted, net, atol=1e-6)
    dcn.verify(converted, IMAGES)


def test_weight_norm(net: Any) -> None:
    changed = copy.deepcopy(net)
    parametrizations.weight_norm(changed.conv2)
    assert_silent_and_equal(changed, net, atol=1e-6)
    dcn.verify(changed, IMAGES)


GRAPHS: dict[str, Callable[[Any], Any]] = {
    "fx": torch.fx.symbolic_trace,
    "export": lambda net: torch.export.export(net, (IMAGES,)).module(),
    "script": torch.jit.script,
    "trace": lambda net: torch.jit.trace(net, IMAGES),
}


# torch 2.15 deprecates TorchScript; it is still how many networks are shipped.
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("tool", GRAPHS)
def test_graphs(net: Any, tool: str) -> None:
    assert_silent_and_equal(GRAPHS[tool](copy.deepcopy(net)), net, atol=1e-6)
