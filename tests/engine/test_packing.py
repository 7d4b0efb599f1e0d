from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from numpy.typing import NDArray

from dcn_plugin.engine import packing
from dcn_plugin.engine.packing import CHUNKS, Packed, pack_forward, pack_input_grad, packed_bytes
from dcn_plugin.engine.row_layout import number_rows
from tests.engine.cases import Layer, layers, make_layer, rows_of


def forward(layer: Layer) -> Packed:
    in_index, out_index, kept, residual_index = layer.indexes
    return pack_forward(layer.weight, layer.bias, in_index, out_index, kept, residual_index, layer.geometry)


def backward(layer: Layer) -> Packed:
    in_index, out_index, kept, _ = layer.indexes
    return pack_input_grad(layer.weight, in_index, out_index, kept, layer.geometry)


def run(
    packed: Packed, x: NDArray[np.float64], rows: int, residual: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """What the lists say, one number at a time; a row that no group writes is NaN, one written twice an error."""
    out = np.full((rows, x.shape[1]), np.nan)
    for group in range(len(packed.read_start) - 1):
        reads = packed.reads[packed.read_start[group] : packed.read_start[group + 1]]
        for at in range(packed.write_start[group], packed.write_start[group + 1]):
            row, place = packed.writes[at]
            assert np.isnan(out[row]).all()
            total = np.full(x.shape[1], packed.bias[at], dtype=np.float64)
            for read, begin in reads:
                total += float(packed.weights[begin + place]) * x[read]
            if packed.residual_rows is not None and packed.residual_rows[at] >= 0:
                assert residual is not None
                total += residual[packed.residual_rows[at]]
            out[row] = total
    return out


@settings(max_examples=60)
@given(layers(batches=(1, 2)))
def test_the_lists_of_the_forward_pass_say_what_the_dense_convolution_does(layer: Layer) -> None:
    exact = layer.double()
    x = rows_of(exact.images, layer.in_live).numpy()
    residual = None
    if exact.residual is not None and layer.residual_live is not None:
        residual = rows_of(exact.residual, layer.residual_live).numpy()
    found = run(forward(layer), x, int(layer.out_live.sum()), residual)
    expected = rows_of(exact.dense(relu=False), layer.out_live).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * max(layer.scale(), 1))


@settings(max_examples=60)
@given(layers(batches=(1, 2)))
def test_the_lists_of_the_gradient_say_what_autograd_does(layer: Layer) -> None:
    exact = layer.double()
    images = exact.images.requires_grad_()
    made = F.conv2d(images, exact.weight, None, *layer.geometry) * layer.kept
    upstream = torch.randn(made.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (expected,) = torch.autograd.grad(made, images, upstream)
    found = run(backward(layer), rows_of(upstream, layer.out_live).numpy(), int(layer.in_live.sum()))
    np.testing.assert_allclose(
        found, rows_of(expected, layer.in_live).numpy(), rtol=0, atol=1e-12 * float(expected.abs().max()) + 1e-12
    )


def live_pairs(layer: Layer) -> int:
    """Live inputs in the window of each kept output, counted one by one."""
    (stride, padding, dilation, groups), pairs = layer.geometry, 0
    outputs, inputs, high, wide = layer.weight.shape
    _, height, width = layer.in_live.shape
    for o, y, x in layer.kept.nonzero().tolist():
        first = o // (outputs // groups) * inputs
        for v in range(high):
            for h in range(wide):
                at_y, at_x = y * stride[0] - padding[0] + v * dilation[0], x * stride[1] - padding[1] + h * dilation[1]
                if 0 <= at_y < height and 0 <= at_x < width:
                    pairs += int(layer.in_live[first : first + inputs, at_y, at_x].sum())
    return pairs


@settings(max_examples=40)
@given(layers(batches=(1, 1)))
def test_multiply_adds_are_the_pairs_of_a_kept_output_and_a_live_input_both_ways(layer: Layer) -> None:
    expected = live_pairs(layer)
    assert forward(layer).multiply_adds == expected
    assert backward(layer).multiply_adds == expected


@settings(max_examples=60)
@given(layers(batches=(1, 1)))
def test_chunks_hold_every_group_once_and_none_is_empty(layer: Layer) -> None:
    for packed in (forward(layer), backward(layer)):
        groups = len(packed.read_start) - 1
        assert len(packed.write_start) == groups + 1
        assert packed.chunks[0] == 0 and packed.chunks[-1] == groups
        assert (np.diff(packed.chunks) > 0).all()
        assert len(packed.chunks) <= CHUNKS + 1


def test_chunks_share_the_work_evenly_up_to_one_group() -> None:
    packed = forward(make_layer(size=(30, 30), inputs=5, outputs=7, densities=(0.5, 0.3, None)))
    reads, writes = np.diff(packed.read_start), np.diff(packed.write_start)
    cost = reads * writes + packing._ROW_COST * (reads + writes)
    by_chunk = np.add.reduceat(cost, packed.chunks[:-1])
    assert len(by_chunk) == CHUNKS
    assert by_chunk.max() <= cost.sum() / CHUNKS + cost.max()


@settings(max_examples=60)
@given(layers(batches=(1, 1)))
def test_the_memory_is_known_before_the_lists_are_made(layer: Layer) -> None:
    packed = forward(layer)
    expected = packed_bytes(layer.kept, layer.in_live, layer.out_live, layer.weight, layer.geometry)
    # Counted as if there were always a residual; chunks, the last ends and groups that only copy are left out.
    residual = 4 * len(packed.writes) if packed.residual_rows is None else 0
    copies = 16 * (int((layer.out_live & ~layer.kept).sum()) // 64 + 1)
    listed = packed.nbytes - packed.chunks.nbytes - 16
    assert listed <= expected - residual + copies
    assert expected - residual <= listed


def test_rows_come_in_the_order_of_memory_whatever_the_order_of_the_strides() -> None:
    layer = make_layer()
    last = Layer(**{**vars(layer), "weight": layer.weight.contiguous(memory_format=torch.channels_last)})
    for pack in (forward, backward):
        ours, theirs = pack(layer), pack(last)
        assert all(
            np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in ("weights", "reads", "writes")
        )


@pytest.mark.parametrize("pack", [forward, backward])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_lists_do_not_depend_on_how_many_positions_are_looked_at_together(pack, groups, monkeypatch) -> None:
    layer = make_layer(inputs=4, outputs=6, groups=groups, densities=(0.5, 0.5, 0.5))
    together = pack(layer)
    monkeypatch.setattr(packing, "_VALUES", 40)  # a position or two
    apart = pack(layer)
    assert all(np.array_equal(part, getattr(apart, name)) for name, part in vars(together).items())


@pytest.mark.parametrize("pack", [forward, backward])
def test_the_lists_are_what_the_kernel_reads(pack) -> None:
    packed = pack(make_layer(densities=(0.5, 0.5, 0.5)))
    for name, dtype in [("weights", "f4"), ("bias", "f4"), ("reads", "i4"), ("writes", "i4"), ("chunks", "i8")]:
        part = getattr(packed, name)
        assert part.dtype == np.dtype(dtype) and part.flags.c_contiguous
    assert packed.read_start.dtype == packed.write_start.dtype == np.int64


def test_a_sum_is_packed_as_one_group_for_each_row() -> None:
    live = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    index = number_rows(live)
    packed = pack_forward(
        torch.ones(5, 1, 1, 1),
        torch.zeros(5),
        index,
        index,
        live,
        index,
        make_layer(groups=5).geometry._replace(padding=(0, 0)),
    )
    assert len(packed.read_start) - 1 == packed.multiply_adds == int(live.sum())
