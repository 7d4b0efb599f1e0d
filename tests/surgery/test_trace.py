"""Reading the data flow: what is recorded, what is refused, and that the model stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.errors import BlockError, DcnError, InputSizeError, SiteError, SpecError, TraceError
from dcn_plugin.support.model_state import eval_mode
from dcn_plugin.surgery.norm_slots import is_norm
from dcn_plugin.surgery.trace import Trace, trace_model
from tests.nets import SmallNet, same, snapshot

SIZE = (3, 16, 16)


def trace(model: nn.Module, size: tuple[int, int, int] = SIZE) -> Trace:
    return trace_model(model, size, is_norm=is_norm)


def flow(model: nn.Module) -> list[str]:
    """Each node as "index: op module < parents"."""
    return [f"{n.index}: {n.op} {n.module} < {' '.join(map(str, n.parents))}".strip() for n in trace(model).nodes]


def test_a_chain_is_recorded_call_by_call_with_each_norm_as_one_node() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    assert flow(model) == ["0: input  <", "1: convolution 0 < 0", "2: BatchNorm2d 1 < 1", "3: relu 2 < 2"]
    found = trace(model)
    assert [n.kind for n in found.nodes] == ["op", "conv", "norm", "op"]
    assert [n.shape for n in found.nodes[1:]] == [(1, 4, 14, 14)] * 3
    assert found.outputs == (3,)
    assert found.spans["1"] == [(2, 3, (1, 4, 14, 14))]


def test_a_sum_has_two_parents_and_a_weight_that_is_computed_has_none() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)
            self.b = timm.layers.StdConv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    assert flow(Net()) == ["0: input  <", "1: convolution a < 0", "2: convolution b < 0", "3: add  < 1 2"]


def test_reading_through_another_view_sees_what_was_written() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(1, 3, 16, 16)
            out[:, :1] = torch.relu(x[:, :1])
            torch.mul(x[:, 1:2], 2, out=out[:, 1:2])
            return out.sum()

    found = trace(Net())
    behind = set(found.outputs)
    for node in reversed(found.nodes):
        behind |= set(node.parents) if node.index in behind else set()
    assert {"relu", "copy", "mul"} <= {found.nodes[i].op for i in behind}
    assert found.nodes[found.outputs[0]].in_shape == (1, 3, 16, 16)


def test_a_blur_filter_is_no_convolution_but_a_frozen_convolution_is_one() -> None:
    model = nn.Sequential(timm.layers.BlurPool2d(3), nn.Conv2d(3, 3, 1).requires_grad_(False))
    kinds = [(n.kind, n.op) for n in trace(model).nodes if n.module]
    assert kinds == [("op", "reflection_pad2d"), ("op", "fixed_filter"), ("conv", "convolution")]


# What cannot be read is a named error.


def test_lazy_parameters_are_refused_by_name_and_fine_after_a_run() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3, stride=2), nn.ReLU(), nn.LazyConv2d(4, 3, stride=2))
    with pytest.raises(TraceError, match=r"lazy parameters.*run it once"):
        dcn.defectify(model, input_size=SIZE)
    model(torch.zeros(1, *SIZE))
    assert len(dcn.defectify(model, input_size=SIZE).defect_spec.sites) == 1


def test_inference_mode_makes_no_difference() -> None:
    torch.manual_seed(0)
    model = SmallNet()
    expected = dcn.defectify(model, input_size=SIZE)
    with torch.inference_mode():
        torch.manual_seed(0)
        for network in (model, SmallNet()):
            net = dcn.defectify(network, input_size=SIZE).eval()
            assert dcn.defect_spec(net) == dcn.defect_spec(expected)
            dcn.verify(net)
            assert torch.equal(net(torch.ones(1, *SIZE)), expected.eval()(torch.ones(1, *SIZE)))


@pytest.mark.parametrize("buffers", [True, False], ids=["all on meta", "buffers real, as accelerate leaves them"])
def test_a_network_whose_weights_are_still_to_come_is_made_defective_and_keeps_its_masks(buffers: bool) -> None:
    with torch.device("meta"):
        model = SmallNet()
    if not buffers:
        for module in model.modules():
            module._buffers.update({name: torch.zeros(b.shape) for name, b in module._buffers.items() if b is not None})
    net, expected = dcn.defectify(model, input_size=SIZE), dcn.defectify(SmallNet(), input_size=SIZE)
    assert dcn.defect_spec(net) == dcn.defect_spec(expected)
    assert dcn.defect_spec(net) == dcn.defect_spec(dcn.defectify(model, example_inputs=torch.rand(1, *SIZE)))
    with pytest.raises(TraceError, match=r"meta device.*to_empty"):
        dcn.verify(net)
    standard = {key: value for key, value in expected.state_dict().items() if not key.endswith("drop.mask")}
    net.load_state_dict(standard, assign=True)
    dcn.verify(net)
    images = torch.rand(2, *SIZE)
    assert torch.equal(net.eval()(images), expected.eval()(images))


@pytest.mark.parametrize("size", [(4, 16, 16), (3, 2, 2)])
def test_an_image_the_model_does_not_accept_is_a_named_error(size: tuple[int, int, int]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
    with pytest.raises(InputSizeError, match="forward fails on an image of this size"):
        dcn.defectify(model, input_size=size)


def test_a_forward_with_other_arguments_is_a_named_error_with_its_cause() -> None:
    class TwoImages(SmallNet):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x + y)

    with pytest.raises(TraceError, match=r"TypeError.*missing 1 required positional argument") as caught:
        dcn.defectify(TwoImages(), input_size=SIZE)
    assert isinstance(caught.value.__cause__, TypeError)


# The model stays as it was.


class Nosy(SmallNet):
    """Draws random numbers in its forward, and can be told to fail there."""

    fails = False

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x + torch.rand_like(x))
        if self.fails:
            raise RuntimeError("told to")
        return out


def run_failing(model: nn.Module) -> None:
    model.fails = True
    try:
        dcn.defectify(model, input_size=SIZE)
    finally:
        model.fails = False


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda model: dcn.defectify(model, input_size=SIZE), None),
        (run_failing, InputSizeError),
        (lambda model: dcn.defectify(model), InputSizeError),
        (lambda model: dcn.defectify(model, "nowhere", input_size=SIZE), BlockError),
        (lambda model: dcn.defectify(model, input_size=SIZE, filter_fn=lambda *_: False), SiteError),
        (lambda model: dcn.defectify(model, p={0: 0.5}, input_size=SIZE), SpecError),
    ],
    ids=["success", "forward fails", "no size", "no block", "no site", "no p"],
)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_are_bit_unchanged(
    act: Callable[[nn.Module], object], error: type[DcnError] | None, training: bool
) -> None:
    model = Nosy().train(training)
    model.fails = False
    model.layer2.bn1.eval()  # frozen by its owner
    before = snapshot(model)
    if error is None:
        act(model)
    else:
        with pytest.raises(error):
            act(model)
    assert same(before, snapshot(model))


def test_functional_networks_are_read_as_well() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 1).flatten(1), self.fc.weight)

    assert [n.module for n in trace(Plain()).convs] == ["conv"]


def test_the_plan_of_a_resnet50_at_224_takes_little_more_than_its_forward() -> None:
    model = timm.create_model("resnet50", pretrained=False)
    with torch.no_grad(), eval_mode(model):
        found = trace(model, (3, 224, 224))
    # 53 convolutions and norms, 49 activations, 16 sums, pooling and head: nothing else is recorded.
    assert len(found.convs) == 53
    assert len(found.nodes) < 200
