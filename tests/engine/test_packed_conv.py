"""Convolutions whose weights are laid out once, against PyTorch's own."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import dcn_plugin as dcn
from dcn_plugin.engine import ladder, ops
from dcn_plugin.engine.clock import Compared
from dcn_plugin.engine.measured_costs import Measured
from dcn_plugin.engine.packed_conv import IMAGES_CONV, can_pack, images_conv
from tests.engine.cases import TOLERANCE, Layer, layers, needs_c
from tests.engine.compacted import LIMIT, assert_close, choice_wins, error, images, input_gradient, small

CPU = torch.device("cpu")
needs_packing = pytest.mark.skipif(
    not can_pack(CPU, torch.float32), reason="this build of PyTorch has no oneDNN, or not the operators"
)
pytestmark = needs_packing


def arguments(layer: Layer) -> tuple[Any, ...]:
    stride, padding, dilation, groups = layer.geometry
    return layer.weight, layer.bias, list(stride), list(padding), list(dilation), groups


@given(layers(), st.booleans())
def test_the_result_and_the_gradient_are_those_of_conv2d(layer: Layer, with_bias: bool) -> None:
    weight, bias, *geometry = arguments(layer)
    x = layer.images.clone().requires_grad_()
    try:
        made = images_conv(x, weight, bias if with_bias else None, *geometry)
        expected = F.conv2d(x, weight, bias if with_bias else None, *geometry)
        limit = TOLERANCE * float(F.conv2d(x.abs(), weight.abs(), bias.abs(), *geometry).detach().abs().max())
        torch.testing.assert_close(made, expected, rtol=0, atol=limit)
        towards = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
        ours, theirs = (torch.autograd.grad(one, x, towards, retain_graph=True)[0] for one in (made, expected))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=limit * 10)
    finally:
        ops.forget([weight])


@pytest.mark.parametrize("outputs", [1, 2, 17])
def test_grey_images_are_convolved_as_they_are(outputs: int) -> None:
    # Packed weights gave other numbers, and not the same ones each time, at this stride and size (torch 2.14.1).
    x, weight = torch.randn(2, 1, 4, 4), torch.randn(outputs, 1, 3, 3)
    weight = weight.contiguous(memory_format=torch.channels_last)
    for _ in range(5):
        made = images_conv(x, weight, None, [1, 2], [0, 0], [1, 1], 1)
        torch.testing.assert_close(made, F.conv2d(x, weight, None, (1, 2)))
    ops.forget([weight])


# opcheck itself reads the .grad of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_it_is_a_proper_operator() -> None:
    x, weight, bias = torch.rand(2, 4, 6, 5), torch.rand(6, 4, 3, 3), torch.rand(6)
    try:
        torch.library.opcheck(images_conv, (x.requires_grad_(), weight, bias, [2, 1], [1, 0], [1, 1], 1))
    finally:
        ops.forget([weight])


def test_weights_are_laid_out_once_until_they_are_forgotten(lists: Callable[[], int]) -> None:
    weight = torch.rand(3, 2, 3, 3)
    geometry: tuple[Any, ...] = ([1, 1], [1, 1], [1, 1], 1)
    for count in (1, 2, 0, 1):
        x = torch.rand(count, 2, 5, 5)
        torch.testing.assert_close(images_conv(x, weight, None, *geometry), F.conv2d(x, weight, None, *geometry))
    assert lists() == 1
    images_conv(torch.rand(1, 2, 5, 5), weight, None, [2, 2], *geometry[1:])
    assert lists() == 2
    ops.forget([weight])
    assert lists() == 0


# --- in a compact model


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if rows never paid and packing always halved the time."""
    monkeypatch.setattr(Measured, "_on_rows", lambda *_: 1e6)
    monkeypatch.setattr(Measured, "_on_images", lambda self, step, packed=False, enough=0.0: 1.0 if packed else 2.0)
    monkeypatch.setattr(ladder, "raced", choice_wins)


def compacted(**options: Any) -> dcn.CompactModel:
    return dcn.compact(small(), batch_size=1, **options)


def convolutions(made: dcn.CompactModel) -> list[Any]:
    convs = (IMAGES_CONV, torch.ops.aten.conv2d.default)
    return [node.target for node in made.on_rows.graph.nodes if node.target in convs]


@needs_c
@pytest.mark.usefixtures("rigged")
def test_a_compact_model_with_packed_weights_is_the_model() -> None:
    model, made = small(), compacted()
    assert convolutions(made) == [IMAGES_CONV] * len(made.plan.layers)
    for count in (0, 1, 5):
        assert made(images(count)).shape == model(images(count)).shape
    assert error(made, model, images(5)) < LIMIT
    assert_close(input_gradient(made, images(2)), input_gradient(model, images(2)))


@needs_c
@pytest.mark.usefixtures("rigged")
def test_the_plan_says_that_weights_are_packed_and_how_large_they_are() -> None:
    plan = compacted().plan
    weights = 4 * sum(one.numel() for one in small().parameters() if one.ndim == 4)
    assert plan.packed_bytes == weights
    assert all("weights laid out once" in layer.reason and layer.dense_ms == 1.0 for layer in plan.layers)
    assert plan.backend == "dense"
    assert f"weights laid out once: {weights / 2**20:.1f} MiB" in str(plan)


@needs_c
@pytest.mark.usefixtures("rigged")
def test_packed_weights_are_freed_with_the_model(lists: Callable[[], int]) -> None:
    made = compacted()
    made(images(1))
    assert lists() == len(made.plan.layers)
    del made
    gc.collect()
    assert lists() == 0


@needs_c
@pytest.mark.usefixtures("rigged")
def test_packed_weights_stay_within_the_budget_those_first_that_save_most_a_byte() -> None:
    sizes = sorted(layer.packed_bytes for layer in compacted().plan.layers)
    # All save the same: the small ones come first.
    made = compacted(max_packed_bytes=sum(sizes) - 1)
    assert sorted(layer.packed_bytes for layer in made.plan.layers) == [0, *sizes[:-1]]
    assert error(made, small(), images()) < LIMIT


@needs_c
@pytest.mark.usefixtures("rigged")
def test_a_compact_model_with_packed_weights_compiles_and_exports() -> None:
    made, given_images = compacted(), images(2)
    expected = made(given_images)
    assert_close(torch.compile(made, backend="aot_eager")(given_images), expected)
    assert_close(torch.export.export(made, (given_images,)).module()(given_images), expected)


@needs_c
def test_packing_that_gains_nothing_is_left(rigged: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measured, "_on_images", lambda self, step, packed=False, enough=0.0: 1.98 if packed else 2.0)
    assert IMAGES_CONV not in convolutions(compacted())


@needs_c
def test_a_graph_that_gains_too_little_is_left(rigged: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def raced(plain: Any, other: Any, *_: Any, **__: Any) -> Compared:
        return Compared(1.01, 1.0, 0.99)  # packed over the model, and then images over packed

    monkeypatch.setattr(ladder, "raced", raced)
    assert IMAGES_CONV not in convolutions(compacted())


def test_what_cannot_be_packed_is_not() -> None:
    assert not can_pack(CPU, torch.float64)
    assert not can_pack(torch.device("cuda"), torch.float32)
