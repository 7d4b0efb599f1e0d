from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import dcn_plugin as dcn
from dcn_plugin.engine.capture import capture, shape_of
from dcn_plugin.errors import CompactError, TraceError
from tests.engine.small_nets import NETS, SIZE, make, pictures

aten = torch.ops.aten


class Net(nn.Module):
    """One convolution and a function of it."""

    def __init__(self, then: Callable[[Net, Tensor], Tensor], first: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = first or nn.Conv2d(3, 4, 3, padding=1)
        self.norm, self.other = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.register_buffer("table", torch.tensor([[0.5, 2.0, -1.0, 4.0]]))
        self.then = then
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in self.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.6 + 0.3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.conv(x))


def targets(captured: fx.GraphModule) -> list[str]:
    return [str(node.target).removeprefix("aten.") for node in captured.graph.nodes if node.op == "call_function"]


def assert_same(model: nn.Module, captured: fx.GraphModule, batch: int = 3) -> None:
    x = pictures(batch)
    expected = model(x.clone())
    torch.testing.assert_close(
        captured(x), expected, rtol=0, atol=1e-6 * max(1.0, float(expected.detach().abs().max()))
    )


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 5])
def test_the_captured_graph_computes_what_the_model_does(name: str, batch: int) -> None:
    model = make(name)
    assert_same(model, capture(model, SIZE), batch)


def test_a_batch_norm_becomes_part_of_the_convolution_before_it() -> None:
    model = Net(lambda net, x: net.norm(x))
    captured = capture(model, SIZE)
    assert targets(captured) == ["conv2d.default"]
    assert_same(model, captured)


def test_two_batch_norms_become_part_of_one_convolution_without_a_bias() -> None:
    model = Net(lambda net, x: net.other(net.norm(x)), nn.Conv2d(3, 4, 1, bias=False))
    captured = capture(model, SIZE)
    assert targets(captured) == ["conv2d.default"]
    assert_same(model, captured)


def test_a_batch_norm_without_weights_is_folded_too() -> None:
    model = Net(lambda net, x: F.batch_norm(x, net.norm.running_mean, net.norm.running_var))
    captured = capture(model, SIZE)
    assert targets(captured) == ["conv2d.default"]
    assert_same(model, captured)


def test_a_batch_norm_behind_anything_else_becomes_a_convolution_with_one_weight_a_channel() -> None:
    model = Net(lambda net, x: net.norm(x.relu()))
    captured = capture(model, SIZE)
    assert targets(captured) == ["conv2d.default", "relu.default", "conv2d.default"]
    assert captured.graph.output_node().args[0].args[6] == 4
    assert_same(model, captured)


def test_a_convolution_that_is_read_elsewhere_keeps_its_weights() -> None:
    model = Net(lambda net, x: net.norm(x) + x)
    captured = capture(model, SIZE)
    assert targets(captured) == ["conv2d.default", "conv2d.default", "add.Tensor"]
    assert_same(model, captured)


def test_a_batch_norm_behind_a_dropout_is_folded_only_for_its_own_readers() -> None:
    model = Net(lambda net, x: net.norm(F.dropout(x, training=False)) + x)
    assert_same(model, capture(model, SIZE))


def test_a_batch_norm_with_the_statistics_of_its_batch_is_left_alone() -> None:
    model = Net(lambda net, x: F.batch_norm(x, None, None, training=True))
    captured = capture(model, SIZE)
    assert "batch_norm.default" in targets(captured)
    assert_same(model, captured)


def test_a_batch_norm_behind_a_convolution_with_computed_weights_is_left_alone() -> None:
    def then(net: Net, x: Tensor) -> Tensor:
        return net.norm(F.conv2d(x, net.conv.weight[:, :1].repeat(1, 4, 1, 1) * x.mean(), padding=1))

    model = Net(then)
    assert_same(model, capture(model, SIZE))


def test_the_norm_of_vectors_stays_a_norm() -> None:
    model = Net(lambda net, x: F.batch_norm(x.mean((2, 3)), net.norm.running_mean, net.norm.running_var))
    assert_same(model, capture(model, SIZE))


def test_folding_keeps_the_dtype() -> None:
    model = Net(lambda net, x: net.norm(x)).double()
    captured = capture(model, SIZE)
    x = pictures(2, dtype=torch.float64)
    torch.testing.assert_close(captured(x), model(x), rtol=0, atol=1e-13)
    assert {one.dtype for one in captured.buffers()} == {torch.float64}


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    model = Net(lambda net, x: x * (net.table.softmax(1) * 2).view(1, 4, 1, 1).exp())
    captured = capture(model, SIZE)
    assert targets(captured) == ["conv2d.default", "mul.Tensor"]
    assert_same(model, captured)


def test_constants_of_operations_with_several_results_are_computed_too() -> None:
    def then(net: Net, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(net.conv.weight, (1, 2, 3))
        return x * var.view(1, -1, 1, 1) - mean.view(1, -1, 1, 1)

    model = Net(then)
    captured = capture(model, SIZE)
    assert targets(captured) == ["conv2d.default", "mul.Tensor", "sub.Tensor"]
    assert_same(model, captured)


def test_computing_constants_leaves_the_model_alone() -> None:
    model = Net(lambda net, x: x * net.table.clone().mul_(3).view(1, 4, 1, 1))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert_same(model, capture(model, SIZE))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "then",
    [lambda net, x: x * torch.rand_like(net.table).view(1, 4, 1, 1), lambda net, x: F.dropout(x, 0.5, training=True)],
    ids=["noise of a constant's shape", "dropout that is always on"],
)
def test_what_is_drawn_anew_at_each_call_stays_drawn(then) -> None:
    captured = capture(Net(then), SIZE)
    x = pictures(2)
    with torch.random.fork_rng():
        assert not torch.equal(captured(x), captured(x))


def test_dropout_and_copies_disappear_in_evaluation() -> None:
    model = Net(lambda net, x: F.dropout2d(F.dropout(x.clone(), training=False), training=False).relu())
    captured = capture(model, SIZE)
    assert targets(captured) == ["conv2d.default", "relu.default"]
    assert_same(model, captured)


IN_PLACE = {
    "relu": lambda net, x: x.relu_(),
    "add": lambda net, x: x.add_(net.table.view(1, 4, 1, 1)),
    "iadd": lambda net, x: x.__iadd__(1.5),
    "mul": lambda net, x: x.mul_(2),
    "hardtanh": lambda net, x: F.hardtanh_(x, -0.5, 0.5),
    "leaky relu": lambda net, x: F.leaky_relu_(x, 0.3),
    "clamp": lambda net, x: x.clamp_(0.2, 0.4),
    "masked fill": lambda net, x: x.masked_fill_(net.table.view(1, 4, 1, 1) < 0, 0.5),
    "copy": lambda net, x: x.copy_(x * 2),
    "zero": lambda net, x: x.zero_() + 1,
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_operations_in_place_become_functional(name: str) -> None:
    model = Net(IN_PLACE[name])
    captured = capture(model, SIZE)
    assert not any(target.split(".")[0].endswith("_") for target in targets(captured))
    assert_same(model, captured)


def test_what_is_read_after_a_change_in_place_is_the_changed_value() -> None:
    def then(net: Net, x: Tensor) -> Tensor:
        before = x * 1
        x.relu_()
        return x + 10 * before

    model = Net(then)
    assert_same(model, capture(model, SIZE))


def test_a_copy_that_is_changed_leaves_the_original_alone() -> None:
    model = Net(lambda net, x: x.clone().relu_() + 10 * x)
    assert_same(model, capture(model, SIZE))


def writes_slice(net: Net, x: Tensor) -> Tensor:
    x[:, :2] = 0
    return x


def writes_part(net: Net, x: Tensor) -> Tensor:
    first = x.chunk(2, 1)[0]
    first.relu_()
    return x


def writes_detached(net: Net, x: Tensor) -> Tensor:
    x.detach().mul_(2)
    return x


def writes_flat(net: Net, x: Tensor) -> Tensor:
    x.flatten(1).mul_(2)
    return x


def writes_under_a_view(net: Net, x: Tensor) -> Tensor:
    flat = x.flatten(1)
    x.mul_(2)
    return flat


@pytest.mark.parametrize("then", [writes_slice, writes_part, writes_detached, writes_flat, writes_under_a_view])
def test_writing_where_a_view_sees_it_is_refused(then) -> None:
    model = Net(then).requires_grad_(False)
    with pytest.raises(TraceError, match="writes into a view"):
        capture(model, SIZE)


def test_a_model_that_torch_export_cannot_follow_is_refused_by_name() -> None:
    def then(net: Net, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x

    with pytest.raises(TraceError, match=r"torch.export cannot follow Net: .*use the model as it is"):
        capture(Net(then), SIZE)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "same", "dilation": 2},
        {"padding": "same", "kernel_size": (5, 1)},
        {"padding": "valid", "stride": 2},
        {"padding": 1, "groups": 1, "bias": False},
        {"padding": "same", "padding_mode": "circular"},
    ],
    ids=str,
)
def test_every_convolution_has_all_seven_arguments_as_numbers(options) -> None:
    model = Net(lambda net, x: net.norm(x), nn.Conv2d(3, 4, **({"kernel_size": 3} | options)))
    captured = capture(model, SIZE)
    (conv,) = [node for node in captured.graph.nodes if node.target is aten.conv2d.default]
    assert len(conv.args) == 7
    for numbers in conv.args[3:6]:
        assert len(numbers) == 2 and all(isinstance(one, int) for one in numbers)
    assert_same(model, captured)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": (3, 4), "dilation": (1, 3)}], ids=str)
def test_same_padding_of_an_even_kernel_is_kept_as_it_is(options) -> None:
    model = Net(lambda net, x: net.norm(x), nn.Conv2d(3, 4, padding="same", **options))
    assert_same(model, capture(model, SIZE))


def test_shapes_are_without_the_batch_and_unknown_where_it_does_not_come_first() -> None:
    model = Net(lambda net, x: x.mean((2, 3)) * x.transpose(0, 1).sum())
    shapes = {node.name: shape_of(node) for node in capture(model, SIZE).graph.nodes if node.op == "call_function"}
    assert shapes == {
        "conv2d_default": (4, 9, 8),
        "mean_dim": (4,),
        "transpose_int": None,
        "sum_default": None,
        "mul_tensor": (4,),
    }


def test_convolutions_carry_the_name_of_their_module() -> None:
    captured = capture(make("PostActivation"), SIZE)
    titles = [node.meta["title"] for node in captured.graph.nodes if node.target is aten.conv2d.default]
    assert titles == ["conv1", "conv2", "conv3"]


def test_a_model_is_not_changed_by_being_captured() -> None:
    model = make("PostActivation")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    capture(model, SIZE)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model.training


def test_the_gradient_behind_an_instance_norm_is_right_for_a_single_image() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, 2))
    net = dcn.defectify(net, "all", p=0.5, input_size=(3, 12, 16)).eval()
    fast = dcn.compact(net, backend="reference")

    def gradient(model: nn.Module, count: int) -> Tensor:
        images = torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        (found,) = torch.autograd.grad(model(images).square().sum(), images)
        return found

    exact = copy.deepcopy(net).double()
    for count in (1, 2):
        images = torch.rand(count, 3, 12, 16, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
        (expected,) = torch.autograd.grad(exact(images).square().sum(), images)
        assert torch.allclose(gradient(fast, count).double(), expected, rtol=1e-3, atol=1e-5)


class Returns(nn.Module):
    """A network whose output has some form."""

    def __init__(self, form: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.conv, self.form = nn.Conv2d(3, 4, 3), form

    def forward(self, x: Tensor) -> object:
        return self.form(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("form", [lambda y: {"logits": y}, lambda y: [y, y], lambda y: (y, (y, y))])
def test_outputs_whose_form_would_be_lost_are_refused(form: Callable[[Tensor], object]) -> None:
    with pytest.raises(CompactError, match=r"Returns returns a (dict|list|tuple), whose form"):
        capture(Returns(form).eval(), (3, 8, 8))


def test_an_export_that_fails_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    net = Returns(lambda y: y * 2 if y.mean() > 0.3 else y).eval()
    with pytest.raises(TraceError, match="use the model as it is"):
        capture(net, (3, 8, 8))
    assert "def forward" not in capfd.readouterr().err
