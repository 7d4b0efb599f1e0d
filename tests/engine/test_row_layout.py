from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcn_plugin.engine.row_layout import Geometry, cells_of, expand, gather, number_rows, readable


@st.composite
def masks(draw: st.DrawFn) -> Tensor:
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    return torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))


@given(masks())
def test_live_neurons_are_numbered_by_position_and_then_by_channel(live: Tensor) -> None:
    index = number_rows(live)
    channels, height, width = live.shape
    expected = 0
    for y in range(height):
        for x in range(width):
            for c in range(channels):
                if live[c, y, x]:
                    assert index[c, y, x] == expected
                    expected += 1
                else:
                    assert index[c, y, x] == -1
    assert index.dtype == torch.int32 and index.is_contiguous()


def test_live_inputs_are_counted_for_each_window_and_group() -> None:
    live = torch.zeros(4, 3, 3, dtype=torch.bool)
    live[0] = live[1, 1, 1] = live[3, 0, 0] = True
    counts = readable(live, (3, 2), Geometry(padding=(1, 0), groups=2))
    assert counts.tolist() == [[[5, 5], [7, 7], [5, 5]], [[1, 0], [1, 0], [0, 0]]]


@given(masks())
def test_cells_are_the_inverse_of_the_numbering(live: Tensor) -> None:
    index = number_rows(live)
    cells = cells_of(index, int(live.sum()))
    assert index.flatten()[cells].tolist() == list(range(int(live.sum())))


@given(masks(), st.integers(0, 3))
def test_expanding_puts_each_row_at_its_neuron_and_zero_elsewhere(live: Tensor, batch: int) -> None:
    index, count = number_rows(live), int(live.sum())
    rows = torch.arange(1.0, count * batch + 1).view(count, batch)
    images = expand(rows, index)
    assert images.shape == (batch, *live.shape)
    for c, y, x in live.nonzero():
        assert torch.equal(images[:, c, y, x], rows[index[c, y, x]])
    assert not images[:, ~live].any()


@given(masks(), st.integers(0, 3))
def test_gathering_is_the_inverse_of_expanding(live: Tensor, batch: int) -> None:
    index, count = number_rows(live), int(live.sum())
    rows = torch.arange(1.0, count * batch + 1).view(count, batch)
    gathered = gather(expand(rows, index), index, count)
    assert torch.equal(gathered, rows) and gathered.is_contiguous()


def test_rows_may_be_numbered_in_any_order() -> None:
    index = torch.tensor([[[2, -1]], [[0, 1]]], dtype=torch.int32)
    rows = torch.tensor([[10.0], [20.0], [30.0]])
    assert expand(rows, index).flatten().tolist() == [30, 0, 10, 20]
    assert torch.equal(gather(expand(rows, index), index, 3), rows)
