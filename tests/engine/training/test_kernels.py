"""The C kernel of training, one function at a time, against loops and dense arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dcn_plugin.engine.row_layout import number_rows
from dcn_plugin.engine.training import kernels
from dcn_plugin.engine.training.lists import Items, computed_neurons, list_items, pack_weight, unpack_weight
from tests.engine.cases import Layer, images_of, make_layer, needs_c, rows_of

pytestmark = needs_c

BATCHES = [1, 4, 15, 16, 17, 33, 64, 70, 130]


def prepared(layer: Layer, *, all_neurons: bool = True) -> tuple[Items, Tensor, Tensor, Tensor]:
    """Lists, rows of x, packed weights, and which values are computed."""
    in_index, out_index, kept, residual_index = layer.indexes
    computed = computed_neurons(kept, layer.out_live, all_neurons=all_neurons)
    items = list_items(in_index, out_index, kept, computed, residual_index, layer.weight.shape, layer.geometry)
    x = rows_of(layer.images, layer.in_live).contiguous()
    return items, x, pack_weight(layer.weight, layer.geometry.groups, items.width), computed


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conv(layer: Layer) -> Tensor:
    return F.conv2d((layer.images * layer.in_live).double(), layer.weight.double(), None, *layer.geometry)


def assert_near(actual: Tensor | NDArray[np.float64], expected: Tensor) -> None:
    actual = torch.as_tensor(actual).double()
    torch.testing.assert_close(actual, expected.double(), rtol=0, atol=1e-5 * max(float(expected.abs().max()), 1.0))


@pytest.mark.parametrize("all_neurons", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_forward_pass_is_the_convolution_and_its_sums_are_those_of_each_channel(
    batch: int, all_neurons: bool
) -> None:
    layer = make_layer(densities=(0.5, 0.6, None), batch=batch, groups=2, outputs=7)
    items, x, weights, computed = prepared(layer, all_neurons=all_neurons)
    y, sums = kernels.forward(items, x, weights, 2, sums=True)
    dense = conv(layer)
    assert_near(y, rows_of(dense, computed))
    assert sums is not None
    shift, first, second = sums
    counts = items.counts * batch
    assert_near((counts * shift + first).sum(0), (dense * computed).sum((0, 2, 3)))
    assert_near((second + 2 * shift * first + counts * shift**2).sum(0), (dense.square() * computed).sum((0, 2, 3)))
    again, none = kernels.forward(items, x, weights, 2, sums=False)
    assert none is None and torch.equal(again, y)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("share", [None, 0.6])
def test_rows_are_scaled_masked_added_and_cut_at_zero(share: float | None, relu: bool) -> None:
    layer = make_layer(densities=(0.5, 0.5, share), batch=19)
    items, x, weights, computed = prepared(layer)
    y, _ = kernels.forward(items, x, weights, 1, sums=False)
    scale = values(2, 5, seed=1)
    residual = None if layer.residual is None else rows_of(layer.residual, layer.residual_live).contiguous()  # type: ignore[arg-type]
    out = kernels.finish(items, y, residual, scale.numpy(), relu=relu)
    expected = (images_of(y, computed) * scale[0, :, None, None] + scale[1, :, None, None]) * layer.kept
    if layer.residual is not None:
        expected = expected + layer.residual * layer.residual_live
    assert_near(out, rows_of(expected.relu() if relu else expected, layer.out_live))
    assert torch.equal(kernels.finish(items, y.clone(), residual, scale.numpy(), relu=relu, in_place=True), out)


@pytest.mark.parametrize("relu", [False, True])
def test_rows_that_are_those_of_y_are_written_over_it(relu: bool) -> None:
    layer = make_layer(densities=(0.5, 0.5, None), batch=19)
    items, x, weights, _ = prepared(layer, all_neurons=False)
    y, _ = kernels.forward(items, x, weights, 1, sums=False)
    ones, scale = np.stack([np.ones(5), np.zeros(5)]).astype(np.float32), values(2, 5, seed=1).numpy()
    for numbers in (scale, ones):
        apart, over = y.clone(), y.clone()
        expected = kernels.finish(items, apart, None, numbers, relu=relu)
        assert torch.equal(apart, y)
        out = kernels.finish(items, over, None, numbers, relu=relu, in_place=True)
        assert out is over and torch.equal(out, expected)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
def test_the_gradient_before_the_relu_goes_to_the_residual_and_is_summed_where_the_mask_keeps(
    batch: int, relu: bool
) -> None:
    layer = make_layer(densities=(0.5, 0.5, 0.5), batch=batch)
    items, x, weights, computed = prepared(layer)
    y, _ = kernels.forward(items, x, weights, 1, sums=False)
    rows = len(items.rows)
    grad, out, mean = values(rows, batch, seed=2), values(rows, batch, seed=3), values(5, seed=4)
    added = int(layer.residual_live.sum())  # type: ignore[union-attr]
    behind = out if relu else None
    residual_grad, sums = kernels.prepare(items, grad, behind, y, mean.numpy(), residual_rows=added)
    expected = grad * (out > 0) if relu else grad
    assert residual_grad is not None
    assert torch.equal(residual_grad, rows_of(images_of(expected, layer.out_live), layer.residual_live))  # type: ignore[arg-type]
    images = images_of(expected, layer.out_live) * layer.kept
    centred = images_of(y, computed) - mean[:, None, None]
    assert_near(sums[0], images.double().sum((0, 2, 3)))
    assert_near(sums[1], (images.double() * centred).sum((0, 2, 3)))
    none, without = kernels.prepare(items, grad, behind, None, mean.numpy())
    assert none is None and np.array_equal(without[0], sums[0]) and not without[1].any()


@pytest.mark.parametrize("all_neurons", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("relu", [False, True])
def test_both_gradients_of_the_convolution(batch: int, all_neurons: bool, relu: bool) -> None:
    layer = make_layer(densities=(0.5, 0.6, None), batch=batch, groups=2, outputs=11)
    items, x, weights, computed = prepared(layer, all_neurons=all_neurons)
    y, grad, scale = values(len(items.places), batch), values(len(items.rows), batch, seed=1), values(3, 22, seed=2)
    out = values(len(items.rows), batch, seed=3) if relu else None
    given = (items, x, weights, y, grad, out, scale.numpy(), 2)
    x_grad, weight_grad = kernels.backward(*given, towards_x=True, towards_weights=True)
    if out is not None:
        grad = grad * (out > 0)
    of_grad, of_y, constant = (part.double()[:, None, None] for part in scale)
    upstream = of_grad * images_of(grad, layer.out_live).double() * layer.kept
    upstream = (upstream + of_y * images_of(y, computed).double() + constant) * computed
    images = (layer.images * layer.in_live).double().requires_grad_()
    weight = layer.weight.double().requires_grad_()
    expected = torch.autograd.grad(F.conv2d(images, weight, None, *layer.geometry), [images, weight], upstream)
    assert x_grad is not None and weight_grad is not None
    assert_near(x_grad, rows_of(expected[0], layer.in_live))
    assert_near(unpack_weight(weight_grad, layer.weight, 2), expected[1])
    alone, none = kernels.backward(*given, towards_x=True, towards_weights=False)
    assert none is None and torch.equal(alone, x_grad)  # type: ignore[arg-type]
    none, alone = kernels.backward(*given, towards_x=False, towards_weights=True)
    assert none is None and torch.equal(alone, weight_grad)  # type: ignore[arg-type]


def test_without_y_the_gradient_does_not_depend_on_it() -> None:
    layer = make_layer(densities=(0.5, 0.6, None), batch=9)
    items, x, weights, _ = prepared(layer, all_neurons=False)
    y, grad, scale = values(len(items.places), 9), values(len(items.rows), 9, seed=1), values(3, 5, seed=2)
    scale[1] = 0
    first, second = (
        kernels.backward(items, x, weights, given, grad, None, scale.numpy(), 1, towards_x=True, towards_weights=True)
        for given in (y, None)
    )
    for with_y, without in zip(first, second, strict=True):
        torch.testing.assert_close(with_y, without)


def test_nothing_to_compute_is_computed_without_touching_memory() -> None:
    for densities in ((0.0, 0.0, None), (0.0, 1.0, None), (1.0, 0.0, None)):
        layer = make_layer(densities=densities, batch=5)
        items, x, weights, computed = prepared(layer, all_neurons=False)
        y, _ = kernels.forward(items, x, weights, 1, sums=True)
        assert y.shape == (int(computed.sum()), 5) and not y.any()
        x_grad, weight_grad = kernels.backward(
            items, x, weights, y, y, None, np.ones((3, 5), dtype=np.float32), 1, towards_x=True, towards_weights=True
        )
        assert not x_grad.any() and not weight_grad.any()  # type: ignore[union-attr]
        assert int((number_rows(layer.out_live) >= 0).sum()) == len(items.rows)
