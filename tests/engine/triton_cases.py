"""The Triton kernels against the dense convolution; ``test_triton_jit.py`` starts this file in a process of its own.

Whether Triton interprets is decided when a kernel is defined, from the environment, so that one process cannot do both.
Interpreted, the cases run on the CPU; otherwise on a GPU.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from dcn_plugin.engine import compact, ops, triton_kernels
from dcn_plugin.engine.packing import Packed, pack_forward, pack_input_grad
from dcn_plugin.engine.row_layout import number_rows
from dcn_plugin.engine.triton_kernels import PRODUCT_OUTPUTS, best_outputs, run_gemm
from tests.engine.cases import TOLERANCE, Layer, arguments, images_of, layers, make_layer, rows_of
from tests.engine.compacted import LIMIT, error, images, small

DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")

LAYERS = {
    "3x3": make_layer(outputs=20, densities=(0.5, 0.5, None), batch=5),
    "more reads than one step takes": make_layer(inputs=9, outputs=6, densities=(1.0, 1.0, None), size=(3, 3)),
    "more outputs than one program has": make_layer(inputs=2, outputs=70, size=(2, 2), densities=(0.9, 0.95, None)),
    "more images than one program has": make_layer(outputs=20, size=(3, 3), batch=67, relu=True),
    "stride": make_layer(stride=(2, 3), size=(7, 8), outputs=18),
    "dilation": make_layer(dilation=(2, 1), padding=(2, 0), outputs=17),
    "groups": make_layer(groups=2, outputs=16, size=(3, 3)),
    "depthwise": make_layer(groups=5, inputs=1, outputs=1, size=(3, 4), batch=33),
    "1x1": make_layer(kernel=(1, 1), padding=(0, 0), inputs=20, outputs=30, size=(3, 2)),
    "pointwise": make_layer(kernel=(1, 1), padding=(0, 0), groups=7, inputs=1, outputs=1),
    "pointwise sum": make_layer(
        kernel=(1, 1), padding=(0, 0), size=(3, 3), groups=7, inputs=1, outputs=1, densities=(0.4, 0.6, 0.5), relu=True
    ),
    "residual": make_layer(outputs=20, densities=(0.3, 0.3, 0.4), size=(4, 4)),
    "residual and relu": make_layer(outputs=20, densities=(0.6, 0.3, 0.4), size=(4, 4), relu=True),
    "nothing but the residual": make_layer(densities=(0.5, 0.0, 0.5)),
    "one image": make_layer(outputs=20, size=(3, 3), batch=1),
    "no image": make_layer(batch=0),
    "no live input": make_layer(densities=(0.0, 0.5, None), outputs=20),
    "no live output": make_layer(densities=(0.5, 0.0, None)),
    "everything live": make_layer(densities=(1.0, 1.0, 1.0), outputs=16, size=(3, 3)),
}

each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())


def forward(layer: Layer) -> Packed:
    in_index, out_index, kept, residual_index = layer.indexes
    return pack_forward(layer.weight, layer.bias, in_index, out_index, kept, residual_index, layer.geometry)


def run(layer: Layer) -> Tensor:
    """The rows that the kernels make of a layer."""
    x, residual, *_ = on_device(arguments(layer, "triton"))
    out = torch.full((int(layer.out_live.sum()), x.shape[1]), torch.nan, device=DEVICE)
    run_gemm(forward(layer), x, out, residual=residual, relu=layer.relu)
    return out.cpu()


def on_device(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.to(DEVICE) if isinstance(one, Tensor) else one for one in given)


def assert_close(found: Tensor, layer: Layer, expected: Tensor) -> None:
    scale = max(layer.scale(), 1.0) if layer.images.numel() else 1.0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE * scale)


@each_layer
def test_rows_are_those_of_the_dense_convolution(layer: Layer) -> None:
    assert_close(run(layer), layer, rows_of(layer.double().dense(), layer.out_live))


@settings(max_examples=25)
@given(layers(batches=(1, 20)))
def test_rows_of_any_layer_are_those_of_the_dense_convolution(layer: Layer) -> None:
    assert_close(run(layer), layer, rows_of(layer.double().dense(), layer.out_live))


@each_layer
def test_the_gradient_is_that_of_the_dense_convolution(layer: Layer) -> None:
    exact = layer.double()
    given = exact.images.requires_grad_()
    made = F.conv2d(given, exact.weight, None, *layer.geometry) * layer.kept
    upstream = torch.randn(made.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected,) = torch.autograd.grad(made, given, upstream)
    in_index, out_index, kept, _ = layer.indexes
    packed = pack_input_grad(layer.weight, in_index, out_index, kept, layer.geometry)
    out = torch.zeros(int(layer.in_live.sum()), len(layer.images), device=DEVICE)
    run_gemm(packed, rows_of(upstream, layer.out_live).float().contiguous().to(DEVICE), out)
    terms = float((upstream.abs().amax() if upstream.numel() else 0) * exact.weight.abs().sum())
    torch.testing.assert_close(
        out.cpu().double(), rows_of(expected, layer.in_live), rtol=0, atol=TOLERANCE * max(terms, 1)
    )


@pytest.mark.parametrize("outputs", PRODUCT_OUTPUTS)
def test_every_size_of_tile_computes_the_same(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "PRODUCT_OUTPUTS", (outputs,))
    layer = LAYERS["more outputs than one program has"]
    assert best_outputs(forward(layer)) == outputs
    assert_close(run(layer), layer, rows_of(layer.double().dense(), layer.out_live))


@pytest.mark.parametrize("way", ["product", "sums"])
@pytest.mark.parametrize("name", ["residual and relu", "pointwise sum", "depthwise"])
def test_both_kernels_compute_the_same(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "best_outputs", lambda packed: PRODUCT_OUTPUTS[0] if way == "product" else None)
    layer = LAYERS[name]
    assert_close(run(layer), layer, rows_of(layer.double().dense(), layer.out_live))


@pytest.mark.parametrize("name", ["residual and relu", "pointwise sum"])
def test_nan_stays_nan_through_relu_and_stays_in_its_image(name: str) -> None:
    layer = LAYERS[name]
    spoilt = layer.images.clone()
    spoilt[1] = torch.nan
    found = run(replace(layer, images=spoilt)).isnan()
    reads = F.conv2d(layer.in_live.float()[None], torch.ones_like(layer.weight), None, *layer.geometry)[0] > 0
    reached = rows_of((reads & layer.kept)[None], layer.out_live)[:, 0]
    assert reached.any() and torch.equal(found[:, 1], reached)
    assert not found[:, 0].any() and not found[:, 2:].any()


def test_rows_that_nobody_writes_are_left_alone() -> None:
    layer = LAYERS["3x3"]
    x, *_ = on_device(arguments(layer, "triton"))
    rows = int(layer.out_live.sum())
    out = torch.full((rows + 3, x.shape[1]), 7.0, device=DEVICE)
    run_gemm(forward(layer), x, out)
    assert (out[rows:] == 7).all() and (out[:rows] != 7).any()


def test_lists_are_moved_once_and_go_with_what_they_were_made_from(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = triton_kernels._make

    def counted(packed: Packed, move: Callable[[np.ndarray[Any, Any]], Tensor]) -> Any:
        made.append(packed.nbytes)
        return make(packed, move)

    monkeypatch.setattr(triton_kernels, "_make", counted)
    gc.collect()
    before = len(triton_kernels._known)
    layer = LAYERS["3x3"]
    packed = forward(layer)
    x, *_ = on_device(arguments(layer, "triton"))
    out = torch.empty(int(layer.out_live.sum()), x.shape[1], device=DEVICE)
    for _ in range(3):
        run_gemm(packed, x, out)
    assert len(made) == 1 and len(triton_kernels._known) == before + 1
    del packed
    gc.collect()
    assert len(triton_kernels._known) == before


@pytest.mark.parametrize("name", ["residual and relu", "stride", "pointwise sum", "no live input"])
def test_the_operators_and_their_gradients_are_those_of_the_reference(name: str) -> None:
    layer = LAYERS[name]

    def outcome(backend: str) -> list[Tensor]:
        given = layer.images.to(DEVICE).requires_grad_()
        other = None if layer.residual is None else layer.residual.to(DEVICE).requires_grad_()
        _, _, weight, bias, *rest = on_device(arguments(layer, backend))
        in_index, out_index, *_ = rest
        x = ops.to_rows(given, in_index, int(layer.in_live.sum()), backend)
        residual = None
        if other is not None:
            residual = ops.to_rows(other, rest[3], int(layer.residual_live.sum()), backend)  # type: ignore[union-attr]
        made = ops.rows_to_dense(ops.rows_conv(x, residual, weight, bias, *rest), out_index, backend)
        sources = [one for one in (given, other) if one is not None]
        upstream = torch.linspace(-1, 1, made.numel(), device=DEVICE).view(made.shape)
        return [made, *torch.autograd.grad(made, sources, upstream)]

    for found, expected in zip(outcome("triton"), outcome("reference"), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * 10 * max(layer.scale(), 1.0))


def test_rows_that_a_mask_left_behind_have_no_gradient() -> None:
    index = number_rows(torch.ones(2, 3, 3, dtype=torch.bool)).to(DEVICE)
    named = torch.where(index % 3 == 0, index, -1)
    x = torch.ones(18, 4, device=DEVICE, requires_grad=True)
    made = ops.rows_to_dense(x, named, "triton")
    assert torch.equal(made, images_of(x, index >= 0) * (named >= 0))
    (found,) = torch.autograd.grad(made.sum(), x)
    assert torch.equal(found, (torch.arange(18, device=DEVICE) % 3 == 0).float()[:, None].expand(18, 4))


def test_a_compact_model_computes_what_its_model_does_and_so_does_its_gradient() -> None:
    model = small().to(DEVICE)
    found = compact(model, backend="triton")
    assert {layer.backend for layer in found.plan.layers} == {"triton"}
    given = images().to(DEVICE)
    assert error(found, model, given) < LIMIT

    def gradient(one: nn.Module) -> Tensor:
        seen = given.clone().requires_grad_()
        (result,) = torch.autograd.grad(one(seen).square().sum(), seen)
        return result

    expected = gradient(model)
    assert float((gradient(found) - expected).abs().max()) < LIMIT * float(expected.abs().max())
