from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcn_plugin.engine import ops
from dcn_plugin.engine.constant_cache import derived
from dcn_plugin.engine.ops import rows_conv, rows_conv_input_grad, rows_to_dense, to_rows
from dcn_plugin.engine.row_layout import Window, expand, gather, number_rows
from tests.engine.cases import (
    BACKENDS,
    TOLERANCE,
    Layer,
    arguments,
    images_of,
    layers,
    make_layer,
    needs_c,
    rows_of,
)


@pytest.fixture(autouse=True)
def no_lists_left_over() -> Iterator[None]:
    """Lists live as long as their tensors; these tests make thousands."""
    yield
    derived._entries.clear()


def assert_close(found: Tensor, expected: Tensor, scale: float) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * scale)


# --- the forward pass ------------------------------------------------------------------------------------------------


@given(layers())
def test_the_reference_is_the_dense_masked_convolution(layer: Layer) -> None:
    exact = layer.double()
    found = rows_conv(*arguments(exact, "reference"))
    torch.testing.assert_close(found, rows_of(exact.dense(), layer.out_live), rtol=0, atol=1e-13 * (1 + layer.scale()))


@needs_c
@settings(max_examples=200)
@given(layers())
def test_the_kernel_is_the_reference(layer: Layer) -> None:
    assert_close(rows_conv(*arguments(layer, "c")), rows_conv(*arguments(layer, "reference")), layer.scale())


def no_live_position(layer: Layer) -> Layer:
    kept, in_live = layer.kept.clone(), layer.in_live.clone()
    kept[:, 2], in_live[:, :, 3] = False, False
    return replace(layer, kept=kept, in_live=in_live)


def no_live_channel(layer: Layer) -> Layer:
    kept, in_live = layer.kept.clone(), layer.in_live.clone()
    kept[1], in_live[0] = False, False
    return replace(layer, kept=kept, in_live=in_live)


def no_live_input(layer: Layer) -> Layer:
    return replace(layer, in_live=torch.zeros_like(layer.in_live))


def no_live_output(layer: Layer) -> Layer:
    return replace(layer, kept=torch.zeros_like(layer.kept), residual=None, residual_live=None)


def only_the_residual(layer: Layer) -> Layer:
    return replace(layer, kept=torch.zeros_like(layer.kept))


def nothing_alive(layer: Layer) -> Layer:
    return no_live_input(no_live_output(layer))


HOLES = [no_live_position, no_live_channel, no_live_input, no_live_output, only_the_residual, nothing_alive]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 19])
@pytest.mark.parametrize("hole", HOLES)
def test_holes_in_the_masks_and_empty_batches_are_no_special_case(hole, batch: int, relu: bool, backend: str) -> None:
    layer = hole(make_layer(densities=(0.7, 0.7, 0.7), batch=batch, relu=relu))
    given_to = arguments(layer, backend)
    x, residual = (None if one is None else one.requires_grad_() for one in given_to[:2])
    found = rows_conv(x, residual, *given_to[2:])
    assert_close(found, rows_of(layer.dense(), layer.out_live), max([1.0, layer.scale()] if batch else [1.0]))
    assert found.shape == (int(layer.out_live.sum()), batch)
    found.sum().backward()
    assert x.grad.shape == x.shape
    assert residual is None or residual.grad.shape == residual.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_may_lie_in_memory_in_any_way(backend: str) -> None:
    layer = make_layer(densities=(0.5, 0.5, 0.5), batch=9)
    x, residual, *rest = arguments(layer, backend)
    turned = [one.t().contiguous().t() for one in (x, residual)]
    assert not any(one.is_contiguous() for one in turned)
    assert torch.equal(rows_conv(*turned, *rest), rows_conv(x, residual, *rest))
    upstream = torch.randn(rest[-2], 9, generator=torch.Generator().manual_seed(0))
    geometry = (*rest[6:10], len(x), backend)
    straight = rows_conv_input_grad(upstream, rest[0], *rest[2:5], *geometry)
    assert torch.equal(rows_conv_input_grad(upstream.t().contiguous().t(), rest[0], *rest[2:5], *geometry), straight)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_pass_through_a_relu_as_in_pytorch(backend: str) -> None:
    layer = make_layer(kernel=(1, 1), padding=(0, 0), inputs=1, outputs=1, densities=(1, 1, None), relu=True, batch=21)
    layer.images[:, 0, 0, :3] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    found = rows_conv(*arguments(layer, backend))
    torch.testing.assert_close(found, rows_of(layer.dense(), layer.out_live), equal_nan=True)


# --- gradients -------------------------------------------------------------------------------------------------------


def gradients(layer: Layer, backend: str) -> tuple[list[Tensor], list[Tensor]]:
    """Towards x and the residual: from the operator, and from autograd through the dense computation.

    Next to the kink of the ReLU, where rounding decides, nothing comes from above.
    """
    images = layer.images.clone().requires_grad_()
    residual = None if layer.residual is None else layer.residual.clone().requires_grad_()
    expected = replace(layer, images=images, residual=residual).dense()
    with torch.no_grad():
        upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3)).to(expected)
        upstream *= layer.dense(relu=False).abs() > TOLERANCE * layer.scale()
    leaves = [one for one in (images, residual) if one is not None]
    theirs = torch.autograd.grad(expected, leaves, upstream)
    alive = [one for one in (layer.in_live, layer.residual_live) if one is not None]

    x, added, *rest = arguments(layer, backend)
    rows = [one.requires_grad_() for one in (x, added) if one is not None]
    made = rows_conv(x, added, *rest)
    ours = torch.autograd.grad(made, rows, rows_of(upstream, layer.out_live))
    return list(ours), [rows_of(one, live) for one, live in zip(theirs, alive, strict=True)]


@given(layers(batches=(1, 9)))
def test_gradients_of_the_reference_are_those_of_the_dense_convolution(layer: Layer) -> None:
    for ours, theirs in zip(*gradients(layer.double(), "reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@needs_c
@settings(max_examples=150)
@given(layers())
def test_gradients_of_the_kernel_are_those_of_the_dense_convolution(layer: Layer) -> None:
    # A sum over the taps and outputs that read a neuron; values of about 1 each.
    terms = layer.weight[:, 0].numel() / layer.geometry.groups
    for ours, theirs in zip(*gradients(layer, "c"), strict=True):
        assert_close(ours, theirs, max(1.0, terms))


@pytest.mark.parametrize(
    "options",
    [
        {"densities": (0.5, 0.5, 0.5)},
        {"densities": (0.5, 0.5, 0.5), "relu": True},
        {"kernel": (1, 1), "padding": (0, 0), "stride": (2, 2)},
        {"groups": 3, "inputs": 1, "outputs": 2, "dilation": (2, 1)},
        {"densities": (0.3, 0.0, 0.4)},
    ],
    ids=["residual", "relu", "1x1, stride 2", "depthwise, dilated", "nothing kept"],
)
def test_gradcheck_of_the_reference_in_float64(options: dict[str, Any]) -> None:
    layer = make_layer(size=(4, 3), batch=2, **options).double()
    x, residual, *rest = arguments(layer, "reference")
    # Finite differences of 1e-6 must not cross the kink.
    assert layer.dense(relu=False)[layer.dense(relu=False) != 0].abs().min() > 1e-4
    leaves = [one.requires_grad_() for one in (x, residual) if one is not None]
    assert torch.autograd.gradcheck(
        lambda *given: rows_conv(given[0], given[1] if residual is not None else None, *rest), leaves
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_gradients_that_are_asked_for_are_made(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, residual, *rest = arguments(make_layer(densities=(0.5, 0.5, 0.5)), backend)

    def never(*args: Any) -> Tensor:
        raise AssertionError("nobody asked for the gradient towards x")

    monkeypatch.setattr(ops, "rows_conv_input_grad", never)
    rows_conv(x, residual.requires_grad_(), *rest).sum().backward()
    assert residual.grad is not None and residual.grad.any()


# --- images to rows and back -----------------------------------------------------------------------------------------


@st.composite
def numberings(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Images, an index, and how many rows it numbers: in any order, and not every row has a neuron."""
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    live = torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
    rows = int(live.sum()) + draw(st.integers(0, 5))
    index = torch.full(shape, -1, dtype=torch.int32)
    index[live] = torch.randperm(rows, generator=generator)[: int(live.sum())].int()
    return torch.randn(draw(st.integers(0, 40)), *shape, generator=generator), index, rows


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@given(case=numberings())
def test_images_become_rows_and_rows_become_images(case, layout: torch.memory_format, backend: str) -> None:
    images, index, rows = case
    images = images.contiguous(memory_format=layout)
    made = to_rows(images, index, rows, backend)
    assert made.shape == (rows, len(images)) and made.is_contiguous()
    unnamed = torch.ones(rows, dtype=torch.bool)
    for c, y, x in (index >= 0).nonzero():
        assert torch.equal(made[index[c, y, x]], images[:, c, y, x])
        unnamed[index[c, y, x]] = False
    assert not made[unnamed].any()
    back = rows_to_dense(made, index, backend)
    assert torch.equal(back, images * (index >= 0))
    assert back.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=numberings())
def test_a_row_that_no_neuron_has_gets_no_gradient(case, backend: str) -> None:
    images, index, rows = case
    # Fresh memory is often zero by chance; what was freed just before is not.
    dirt = torch.full((rows, len(images)), 7.0)
    x = dirt.clone().requires_grad_()
    del dirt
    (found,) = torch.autograd.grad(rows_to_dense(x, index, backend), x, images)
    assert torch.equal(found, to_rows(images, index, rows, "reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=numberings())
def test_the_gradient_towards_the_images_is_zero_where_no_neuron_is(case, backend: str) -> None:
    images, index, rows = case
    upstream = torch.arange(1.0, rows * len(images) + 1).view(rows, len(images))
    made = to_rows(images.requires_grad_(), index, rows, backend)
    (found,) = torch.autograd.grad(made, images, upstream)
    assert torch.equal(found, rows_to_dense(upstream, index, "reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_parts_of_larger_images_become_rows(backend: str) -> None:
    images = torch.randn(9, 4, 6, 5, generator=torch.Generator().manual_seed(0))
    part = images[::2, 1:3, :, 1:]
    live = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(1)) < 0.5
    found = to_rows(part, number_rows(live), int(live.sum()), backend)
    assert torch.equal(found, rows_of(part, live))
    assert torch.equal(images_of(found, live), part * live)


# --- what torch.library promises -------------------------------------------------------------------------------------

# opcheck itself reads the .grad of a tensor that is no leaf.
reads_grad = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@reads_grad
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_opcheck_accepts_the_convolution(with_residual: bool, backend: str) -> None:
    x, residual, *rest = arguments(make_layer(densities=(0.5, 0.5, 0.5 if with_residual else None), relu=True), backend)
    x.requires_grad_()
    torch.library.opcheck(torch.ops.dcn_plugin.rows_conv.default, (x, residual, *rest))


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_accepts_the_gradient_of_the_convolution(backend: str) -> None:
    x, _, weight, _, *rest = arguments(make_layer(), backend)
    upstream = torch.randn(rest[-2], 3, generator=torch.Generator().manual_seed(0))
    given_to = (upstream, weight, *rest[:3], *rest[4:8], len(x), backend)
    torch.library.opcheck(torch.ops.dcn_plugin.rows_conv_input_grad.default, given_to)


@reads_grad
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_accepts_the_conversions(backend: str) -> None:
    layer = make_layer()
    index, rows = number_rows(layer.in_live), int(layer.in_live.sum())
    torch.library.opcheck(
        torch.ops.dcn_plugin.images_to_rows.default, (layer.images.requires_grad_(), index, rows, backend)
    )
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.library.opcheck(torch.ops.dcn_plugin.rows_to_images.default, (x, index, backend))


# --- what is kept between calls --------------------------------------------------------------------------------------


@needs_c
def test_lists_are_made_once_for_the_same_tensors_and_forgotten_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(ops, "pack_forward", lambda *args, real=ops.pack_forward: made.append(1) or real(*args))
    given_to = arguments(make_layer(), "c")
    for _ in range(3):
        rows_conv(*given_to)
    assert len(made) == 1
    ops.forget([given_to[2]])
    rows_conv(*given_to)
    assert len(made) == 2


# --- max-pools on rows -----------------------------------------------------------------------------------------------


def pooled_both_ways(
    window: Window, density: float, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Any, ...]]:
    """Images, which of their neurons live, PyTorch's pool of them, that of the operator, and its arguments."""
    draw = torch.Generator().manual_seed(3)
    live = torch.rand(3, 9, 8, generator=draw) < density
    images = (torch.randn(5, 3, 9, 8, generator=draw) * live).requires_grad_()
    expected = F.max_pool2d(images, *window)
    # Negative values: a dead neuron in the window is a 0 that wins against them.
    out_live = F.max_pool2d(live[None].float(), *window)[0] != 0
    index, out_index = number_rows(live), number_rows(out_live)
    x = gather(images, index, int(live.sum()))
    spread = (*map(list, window[:4]), window.ceil, int(out_live.sum()), backend)
    made = expand(ops.rows_max_pool(x, index, out_index, *spread), out_index)
    return images, live, expected, made, (x.detach(), index, out_index, *spread)


WINDOWS = [
    Window((2, 2), (2, 2)),
    Window((3, 3), (2, 2), (1, 1)),
    Window((3, 2), (1, 2), (1, 0), (2, 1)),
    Window((2, 2), (2, 2), ceil=True),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("window", WINDOWS, ids=["2", "3-padded", "dilated", "ceil"])
def test_a_pool_of_rows_is_that_of_images_and_so_is_its_gradient(window: Window, density: float, backend: str) -> None:
    images, live, expected, made, _ = pooled_both_ways(window, density, backend)
    assert torch.equal(made, expected)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    (found,) = torch.autograd.grad(made, images, upstream, retain_graph=True, allow_unused=True)
    (wanted,) = torch.autograd.grad(expected, images, upstream)
    # A dead neuron is no variable: what falls on its 0 is lost.
    torch.testing.assert_close(found, wanted * live)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pool_of_rows_hands_nan_on(backend: str) -> None:
    *_, (x, *rest) = pooled_both_ways(WINDOWS[0], 1.0, backend)
    x[0, 0] = torch.nan
    assert ops.rows_max_pool(x, *rest)[:, 0].isnan().sum() == 1


@reads_grad
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck_accepts_the_pool_and_its_gradient(backend: str) -> None:
    *_, (x, index, out_index, *spread) = pooled_both_ways(WINDOWS[1], 0.4, backend)
    torch.library.opcheck(
        torch.ops.dcn_plugin.rows_max_pool.default, (x.clone().requires_grad_(), index, out_index, *spread)
    )
    upstream = torch.randn(spread[-2], x.shape[1], generator=torch.Generator().manual_seed(4))
    torch.library.opcheck(torch.ops.dcn_plugin.rows_max_pool_grad.default, (upstream, x, index, out_index, *spread[:5]))


def test_opcheck_accepts_the_gradient_of_the_residual() -> None:
    layer = make_layer(densities=(0.5, 0.5, 0.5))
    _, out_index, _, residual_index = layer.indexes
    assert layer.residual_live is not None
    upstream = torch.randn(int(layer.out_live.sum()), 3, generator=torch.Generator().manual_seed(0))
    given_to = (upstream, residual_index, out_index, int(layer.residual_live.sum()))
    torch.library.opcheck(torch.ops.dcn_plugin.rows_residual_grad.default, given_to)
