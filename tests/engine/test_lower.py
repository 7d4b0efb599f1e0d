from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import dcn_plugin as dcn
from dcn_plugin.engine.capture import capture
from dcn_plugin.engine.constant_cache import derived
from dcn_plugin.engine.liveness import live_neurons
from dcn_plugin.engine.lower import lower, write_in_place
from dcn_plugin.engine.steps import find_steps
from tests.engine.cases import BACKENDS, needs_c
from tests.engine.small_nets import NETS, SIZE, Mask, Program, make, pictures, programs, randomised
from tests.nets import SmallNet, shaken

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_lists_left_over() -> Iterator[None]:
    yield
    derived._entries.clear()


def on_rows(
    model: nn.Module, backend: str, *, size: tuple[int, int, int] = SIZE, which: slice = slice(None)
) -> fx.GraphModule:
    captured = capture(model, size)
    steps = find_steps(captured.graph)
    rows = [step for step in steps if step.kind != "other"][which]
    return lower(captured, steps, live_neurons(captured.graph), rows, backend, device=CPU)


def outputs_and_gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = model(x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    return out.detach(), gradient


def assert_equal_up_to(found: Tensor, expected: Tensor, share: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=share * max(float(expected.abs().max()), 1e-6))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 5])
def test_all_steps_on_rows_of_the_reference_are_the_model_in_float64(name: str, batch: int) -> None:
    model, x = make(name, dtype=torch.float64), pictures(batch, dtype=torch.float64)
    for ours, theirs in zip(
        outputs_and_gradient(on_rows(model, "reference"), x), outputs_and_gradient(model, x), strict=True
    ):
        assert_equal_up_to(ours, theirs, 1e-12)


@needs_c
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [1, 21])
def test_all_steps_on_rows_of_the_kernel_are_the_model(name: str, batch: int) -> None:
    model, x = make(name), pictures(batch)
    ours, our_gradient = outputs_and_gradient(on_rows(model, "c"), x)
    theirs, their_gradient = outputs_and_gradient(model, x)
    assert_equal_up_to(ours, theirs, 1e-5)
    # A ReLU whose input rounds to the other side of 0 changes the gradient of one image, by far more than rounding.
    # About one activation in 1e6 lies as near to 0 as its rounding error; there are at most 21 x 1000 of them.
    differs = (our_gradient - their_gradient).abs() > 1e-5 * their_gradient.abs().max()
    assert differs.flatten(1).any(1).sum() <= (batch > 1)


@settings(max_examples=20)
@given(net=programs(), batch=st.sampled_from([1, 4]))
def test_all_steps_on_rows_of_the_reference_are_the_model_whatever_the_network(net: Program, batch: int) -> None:
    model, x = randomised(net, dtype=torch.float64), pictures(batch, dtype=torch.float64)
    with torch.no_grad():
        assert_equal_up_to(on_rows(model, "reference")(x), model(x), 1e-10)


@needs_c
@settings(max_examples=20)
@given(net=programs(), batch=st.sampled_from([1, 4, 17]))
def test_the_kernel_rounds_no_worse_than_pytorch_whatever_the_network(net: Program, batch: int) -> None:
    model, x = randomised(net), pictures(batch)
    with torch.no_grad():
        ours, theirs = on_rows(model, "c")(x), model(x)
        exact = copy.deepcopy(model).double()(x.double())
    # Products and differences of products can make rounding errors of any size: PyTorch's own are the measure.
    allowed = 10 * float((theirs - exact).abs().max()) + 1e-5 * float(exact.abs().max())
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=allowed)


@settings(max_examples=15)
@given(programs())
@example(Program([("conv", 0, 0), ("mask", 0, 0), ("add", 0, 0), ("gate", 0, 0)]))  # the square of a fresh value
def test_gradients_through_rows_are_those_of_the_model_whatever_the_network(net: Program) -> None:
    model, x = randomised(net, dtype=torch.float64), pictures(2, dtype=torch.float64)
    theirs = outputs_and_gradient(model, x)[1]
    assert_equal_up_to(outputs_and_gradient(on_rows(model, "reference"), x)[1], theirs, 1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["PostActivation", "DenseConcat", "MaskedLast", "TwoConvsAdded"])
@pytest.mark.parametrize("which", [slice(0, None, 2), slice(1, None, 2), slice(0, 1), slice(-1, None)], ids=str)
def test_any_choice_of_steps_may_run_on_rows_and_the_rest_on_images(name: str, which: slice, backend: str) -> None:
    model, x = make(name), pictures(3)
    ours, our_gradient = outputs_and_gradient(on_rows(model, backend, which=which), x)
    theirs, their_gradient = outputs_and_gradient(model, x)
    assert_equal_up_to(ours, theirs, 1e-5)
    assert_equal_up_to(our_gradient, their_gradient, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["neuron", "channel", "shared"])
def test_a_defectified_model_on_rows_is_the_model(mode: str, backend: str) -> None:
    plain = shaken(SmallNet())
    model = dcn.defectify(plain, blocks="all", p=0.3, mode=mode, input_size=(3, 16, 16))
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = on_rows(model, backend, size=(3, 16, 16))
    with torch.no_grad():
        assert_equal_up_to(ours(x), model(x), 1e-5)
        assert not torch.allclose(model(x), plain(x), rtol=1e-2)


def operators(graph: fx.GraphModule) -> list[str]:
    return [str(node.target).removeprefix("dcn_plugin.") for node in graph.graph.nodes if node.op == "call_function"]


def test_no_step_on_rows_leaves_the_operations_of_the_model() -> None:
    model = make("PostActivation")
    found = on_rows(model, "reference", which=slice(0, 0))
    assert not any("rows" in one for one in operators(found))
    x = pictures(3)
    torch.testing.assert_close(found(x), model(x), rtol=0, atol=1e-5)


def test_values_stay_on_rows_from_the_first_step_to_the_last() -> None:
    found = operators(on_rows(make("PostActivation"), "reference"))
    assert found == ["images_to_rows.default", *["rows_conv.default"] * 3, "rows_to_images.default"]


def test_a_value_is_converted_once_however_often_it_is_read() -> None:
    found = operators(on_rows(make("DenseConcat"), "reference", which=slice(0, 1)))
    assert found.count("rows_to_images.default") == 1


def test_a_mask_on_rows_is_no_work() -> None:
    found = operators(on_rows(make("MaskedLast"), "reference"))
    assert [one for one in found if "mul" in one] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_hold_only_the_neurons_that_exist(backend: str) -> None:
    model = make("PostActivation")
    calls = [n for n in on_rows(model, backend).graph.nodes if n.target is torch.ops.dcn_plugin.rows_conv.default]
    masks = [int(one.kept.sum()) for one in (model.mask1, model.mask2)]
    assert [one.args[-2] for one in calls] == [*masks, int((model.mask2.kept | model.mask3.kept).sum())]


def test_the_graph_does_not_change_the_images_that_it_is_given() -> None:
    for name in NETS:
        x = pictures(2)
        with torch.no_grad():
            on_rows(make(name), "reference", which=slice(0, 0))(x)
        assert torch.equal(x, pictures(2))


def test_a_graph_on_rows_can_be_copied() -> None:
    found, x = on_rows(make("PostActivation"), "reference"), pictures(2)
    assert torch.equal(copy.deepcopy(found)(x), found(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", NETS)
def test_an_empty_batch_passes(name: str, backend: str) -> None:
    model = make(name)
    found = on_rows(model, backend)(pictures(0))
    assert found.shape == model(pictures(0)).shape


class ReluBehindAMask(nn.Module):
    """A convolution without a bias: it makes exactly 0 of black images, at dead neurons too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.mask1, self.conv2 = nn.Conv2d(3, 5, 1, bias=False), Mask(5, seed=0), nn.Conv2d(5, 2, 1)
        randomised(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.mask1(self.conv1(x)))).exp()


@pytest.mark.parametrize("which", [slice(0, 0), slice(None)], ids=["images", "rows"])
def test_no_gradient_flows_through_a_dead_neuron_even_where_the_convolution_makes_exactly_zero(which: slice) -> None:
    model = ReluBehindAMask()
    gradient = outputs_and_gradient(on_rows(model, "reference", which=which), torch.zeros(2, *SIZE))[1]
    dead = ~model.mask1.kept[0].any(0)
    assert dead.any() and not gradient[:, :, dead].any()


# --- overwriting -----------------------------------------------------------------------------------------------------


def traced(function) -> fx.GraphModule:
    """A captured function of images, its operations overwriting where they may."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.register_buffer("factor", torch.full((1, 3, 1, 1), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return function(self, x)

    captured = capture(Model().eval(), SIZE)
    write_in_place(captured.graph)
    captured.recompile()
    return captured


def test_a_chain_that_nobody_else_reads_is_overwritten() -> None:
    found = operators(traced(lambda m, x: (m.conv(x) * m.factor + x).relu()))
    assert found == ["aten.conv2d.default", "aten.mul_.Tensor", "aten.add_.Tensor", "aten.relu_.default"]


def test_what_is_read_twice_or_comes_from_outside_is_not_overwritten() -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        return x.relu() + y.relu() * y

    found = operators(traced(function))
    assert found.count("aten.relu.default") == 2
    # The gradient of a ReLU needs its result.
    assert not any(name.endswith(("mul_.Tensor", "add_.Tensor", "relu_.default")) for name in found)


def test_a_value_that_grows_is_not_overwritten() -> None:
    found = operators(traced(lambda m, x: m.conv(x.mean((2, 3), keepdim=True)) + x))
    assert found[-1] == "aten.add.Tensor"


@pytest.mark.parametrize("name", NETS)
def test_overwriting_changes_no_result(name: str) -> None:
    captured, x = capture(make(name), SIZE), pictures(3)
    expected = captured(x)
    write_in_place(captured.graph)
    captured.recompile()
    assert torch.equal(captured(x), expected)


@pytest.mark.parametrize("name", ["PreActivation", "DenseConcat"])
def test_a_batch_norm_of_its_own_is_no_convolution_on_images(name: str) -> None:
    model = make(name)
    captured = capture(model, SIZE)
    steps, live = find_steps(captured.graph), live_neurons(captured.graph)
    graph = lower(captured, steps, live, (), "reference", device=torch.device("cpu"))
    convs = [node for node in graph.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    assert not any(node.args[6] > 1 for node in convs)
    assert len(convs) == sum(isinstance(one, nn.Conv2d) for one in model.modules())
    for count in (1, 5):
        x = pictures(count).requires_grad_()
        expected = model(x)
        made = graph(x)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
        ours, theirs = (torch.autograd.grad(one.square().sum(), x)[0] for one in (made, expected))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
