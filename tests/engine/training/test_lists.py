"""Lists of rows: what they say is what loops over positions, taps and channels say."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from dcn_plugin.engine.row_layout import number_rows
from dcn_plugin.engine.training.lists import PAD, Items, computed_neurons, list_items, pack_weight, unpack_weight
from tests.engine.cases import Layer, layers, make_layer


def items_of(layer: Layer, *, all_neurons: bool = False) -> Items:
    in_index, out_index, kept, residual_index = layer.indexes
    computed = computed_neurons(kept, layer.out_live, all_neurons=all_neurons)
    return list_items(in_index, out_index, kept, computed, residual_index, layer.weight.shape, layer.geometry)


def terms(layer: Layer, *, all_neurons: bool) -> set[tuple[int, int, int, int]]:
    """(row of y, row of x, where the weights of that input begin, output within the group) of every multiply-add."""
    in_index, _, kept, _ = layer.indexes
    outputs, inputs, high, wide = layer.weight.shape
    (down, right), (top, left), (every_down, every_right), groups = layer.geometry
    computed = torch.ones_like(kept) if all_neurons else kept
    y_index, size = number_rows(computed), layer.in_live.shape[1:]
    width = -(-(outputs // groups) // PAD) * PAD
    found = set()
    for out, row, column in computed.nonzero().tolist():
        group = out // (outputs // groups)
        for tap_row, tap_column, channel in itertools.product(range(high), range(wide), range(inputs)):
            at = (row * down - top + tap_row * every_down, column * right - left + tap_column * every_right)
            if not all(0 <= place < side for place, side in zip(at, size, strict=True)):
                continue
            x_row = int(in_index[group * inputs + channel, at[0], at[1]])
            if x_row >= 0:
                begin = (((group * high + tap_row) * wide + tap_column) * inputs + channel) * width
                found.add((int(y_index[out, row, column]), x_row, begin, out % (outputs // groups)))
    return found


def listed(items: Items) -> list[tuple[int, int, int, int]]:
    """The same from the lists."""
    found = []
    for item in range(len(items.read_start) - 1):
        reads = items.reads[items.read_start[item] : items.read_start[item + 1]].tolist()
        for row in range(items.write_start[item], items.write_start[item + 1]):
            found += [(row, read, begin, int(items.places[row])) for read, begin in reads]
    return found


@settings(max_examples=25)
@given(layers(batches=(1, 1)))
def test_every_multiply_add_is_listed_once(layer: Layer) -> None:
    for all_neurons in (False, True):
        items = items_of(layer, all_neurons=all_neurons)
        found = listed(items)
        assert len(found) == len(set(found)) == items.multiply_adds
        assert set(found) == terms(layer, all_neurons=all_neurons)


@settings(max_examples=25)
@given(layers(batches=(1, 1)))
def test_rows_behind_norm_and_mask_know_where_they_come_from(layer: Layer) -> None:
    _, out_index, kept, residual_index = layer.indexes
    for all_neurons in (False, True):
        items = items_of(layer, all_neurons=all_neurons)
        computed = torch.ones_like(kept) if all_neurons else kept
        y_index = number_rows(computed)
        assert len(items.rows) == int(layer.out_live.sum()) and len(items.places) == int(computed.sum())
        for neuron in layer.out_live.nonzero().tolist():
            place = tuple(neuron)
            y, channel, added = items.rows[int(out_index[place])].tolist()
            assert channel == neuron[0]
            assert y == (int(y_index[place]) if kept[place] else -1)
            assert added == (-1 if residual_index is None else int(residual_index[place]))
        for neuron in computed.nonzero().tolist():
            place = tuple(neuron)
            assert items.grad_rows[int(y_index[place])] == (int(out_index[place]) if kept[place] else -1)


@settings(max_examples=25)
@given(layers(batches=(1, 1)))
def test_chunks_cover_every_item_once_and_count_their_rows(layer: Layer) -> None:
    items = items_of(layer, all_neurons=True)
    assert items.chunks[0] == 0 and items.chunks[-1] == len(items.read_start) - 1
    assert (np.diff(items.chunks) > 0).all()
    assert items.counts.shape == (len(items.chunks) - 1, len(layer.weight))
    assert (items.counts.sum(axis=0) == layer.kept[0].numel()).all()
    groups = layer.geometry.groups
    for chunk, (first, last) in enumerate(itertools.pairwise(items.chunks.tolist())):
        counts = np.zeros(len(layer.weight), dtype=np.int64)
        for item in range(first, last):
            for row in range(items.write_start[item], items.write_start[item + 1]):
                counts[item % groups * (len(layer.weight) // groups) + items.places[row]] += 1
        assert (counts == items.counts[chunk]).all()


@pytest.mark.parametrize("dead", ["inputs", "outputs", "both"])
def test_what_is_dead_is_not_listed(dead: str) -> None:
    densities = {"inputs": (0.0, 1.0, None), "outputs": (1.0, 0.0, None), "both": (0.0, 0.0, None)}[dead]
    items = items_of(make_layer(densities=densities))
    assert items.multiply_adds == 0 and not len(items.reads)
    assert len(items.places) == (0 if dead != "inputs" else 5 * 5 * 6)
    # Statistics of all neurons need the others too; they are what the norm sees there, 0.
    assert len(items_of(make_layer(densities=densities), all_neurons=True).places) == 5 * 5 * 6


def test_a_layer_of_one_channel_and_one_tap_is_listed() -> None:
    layer = make_layer(kernel=(1, 1), padding=(0, 0), inputs=1, outputs=1, densities=(0.5, 0.5, None))
    items = items_of(layer)
    assert items.multiply_adds == int((layer.in_live & layer.kept).sum()) > 0


def test_the_memory_of_the_lists_is_that_of_their_arrays() -> None:
    items = items_of(make_layer())
    assert items.nbytes == sum(value.nbytes for value in vars(items).values() if isinstance(value, np.ndarray))
    assert items.nbytes >= items.reads.nbytes + items.rows.nbytes


@pytest.mark.parametrize("shape", [(6, 3, 3, 2), (34, 1, 1, 1), (16, 5, 1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_packed_weights_come_back_as_they_were(
    shape: tuple[int, int, int, int], groups: int, layout: torch.memory_format
) -> None:
    weight = torch.randn(shape).contiguous(memory_format=layout)
    outputs, inputs, high, wide = shape
    width = -(-(outputs // groups) // PAD) * PAD
    packed = pack_weight(weight, groups, width)
    assert packed.shape == (groups * high * wide * inputs, width) and packed.is_contiguous()
    for group, row, column, channel in itertools.product(range(groups), range(high), range(wide), range(inputs)):
        line = packed[((group * high + row) * wide + column) * inputs + channel]
        of_group = weight[group * outputs // groups : (group + 1) * outputs // groups, channel, row, column]
        assert torch.equal(line[: outputs // groups], of_group)
        assert not line[outputs // groups :].any()
    back = unpack_weight(packed, weight, groups)
    assert torch.equal(back, weight)
    assert back.stride() == weight.stride()
