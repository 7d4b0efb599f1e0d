from __future__ import annotations

import pytest
import timm
import torch
from torch import fx, nn

import dcn_plugin as dcn
from dcn_plugin.engine import Plan
from dcn_plugin.engine import dense_twin as twins
from dcn_plugin.engine.dense_twin import DenseTwin, dense_twin, ideal_speedup
from dcn_plugin.engine.plan import LayerPlan
from dcn_plugin.errors import NotDefectiveError
from tests.nets import SmallNet, same, shaken, snapshot

SIZE = (3, 16, 16)


def masked_net(p: float = 0.4) -> nn.Module:
    return dcn.defectify(shaken(SmallNet()), p=p, input_size=SIZE).eval()


def pictures(count: int = 2) -> torch.Tensor:
    return torch.rand(count, *SIZE, generator=torch.Generator().manual_seed(0))


def plan_of(live: dict[str, int]) -> Plan:
    """A plan that leaves so many multiply-adds of each layer."""
    layers = [
        LayerPlan(name=name, shape=(1, 1, 1), dense=count, live=count, packed_bytes=0, dense_ms=None, rows_ms=None,
                  backend="c", reason="")
        for name, count in live.items()
    ]  # fmt: skip
    return Plan(layers=tuple(layers), backend="c", batch_size=2, dense_ms=None, compact_ms=None, least_batch=1)


def test_the_twin_computes_what_the_model_computes_without_masks() -> None:
    model, images = masked_net(), pictures()
    expected = dcn.undefectify(model)(images)
    torch.testing.assert_close(dense_twin(model).module(images), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(images), expected, rtol=1e-2)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_the_twin_has_no_batch_norm_left_and_weights_in_channels_last(name: str) -> None:
    # The second has timm's norms with an activation inside, which torch.fx's own fusion does not know.
    model = dcn.defectify(timm.create_model(name).eval())
    module = dense_twin(model).module
    called = [node for node in module.graph.nodes if node.op == "call_function"]
    assert not [node for node in called if "norm" in str(node.target)]
    convs = [node for node in called if node.target is torch.ops.aten.conv2d.default]
    weights = [getattr(module, str(node.args[1])) for node in convs]
    assert len(weights) > 5
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_the_twin_has_the_gradient_of_the_model_without_masks() -> None:
    model, images = masked_net(), pictures().requires_grad_()
    (expected,) = torch.autograd.grad(dcn.undefectify(model)(images).sum(), images)
    with torch.inference_mode():
        twin = dense_twin(model)
    (got,) = torch.autograd.grad(twin.module(images).sum(), images)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_making_a_twin_changes_nothing_in_the_model() -> None:
    model = masked_net()
    before = snapshot(model)
    dense_twin(model)
    assert same(before, snapshot(model))


def test_a_model_without_masks_has_no_twin() -> None:
    with pytest.raises(NotDefectiveError):
        dense_twin(SmallNet().eval())


def test_the_work_of_a_layer_leaves_out_the_padding() -> None:
    work = dense_twin(masked_net()).work
    # 3x3 on 16x16 with a border of zeros: 16 * 3 - 2 taps along each side.
    assert work["conv1"] == 3 * 8 * 46 * 46
    assert set(work) == {name for name, module in SmallNet().named_modules() if isinstance(module, nn.Conv2d)}


def fixed_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution takes 10 s, everything else 1 s."""

    def seconds(module: fx.GraphModule, *_: object) -> dict[fx.Node, float]:
        called = [node for node in module.graph.nodes if node.op == "call_function"]
        return {node: 10.0 if node.target is torch.ops.aten.conv2d.default else 1.0 for node in called}

    monkeypatch.setattr(twins, "_seconds", seconds)


class Chain(nn.Module):
    """conv-bn-relu, conv-relu, mean."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.bn1(self.conv1(x)).relu()).relu().mean((2, 3))


def chain_twin() -> DenseTwin:
    return dense_twin(dcn.defectify(Chain().eval(), blocks=("conv1", "bn1"), p=0.5, input_size=(3, 4, 4)))


def test_the_ideal_weighs_a_layer_and_the_relu_behind_it_with_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_times(monkeypatch)
    twin = chain_twin()
    assert twin.work == {"conv1": 3 * 4 * 16, "conv2": 4 * 4 * 16}
    plan = plan_of({"conv1": 3 * 4 * 4, "conv2": 4 * 4 * 8})
    # Of conv1 and its ReLU a quarter is left, of conv2 and its ReLU a half; the mean is not weighted.
    assert ideal_speedup(twin, plan, pictures()) == pytest.approx((11 + 11 + 1) / (11 / 4 + 11 / 2 + 1))


def test_the_ideal_of_a_model_with_nothing_to_skip_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed_times(monkeypatch)
    twin = chain_twin()
    assert ideal_speedup(twin, plan_of(twin.work), pictures()) == 1


def test_the_ideal_is_measured_on_the_images_it_gets() -> None:
    twin = chain_twin()
    images = torch.rand(2, 3, 4, 4)
    found = ideal_speedup(twin, plan_of(dict.fromkeys(twin.work, 0)), images)
    assert 1 < found < float("inf")
