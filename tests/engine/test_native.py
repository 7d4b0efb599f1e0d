"""The C backend: every width of vectors, any number of threads, and what stands in its way."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dcn_plugin.engine import native
from dcn_plugin.engine.ops import rows_conv, to_rows
from dcn_plugin.engine.packing import Packed, pack_forward, pool_windows
from dcn_plugin.engine.row_layout import Window, number_rows
from dcn_plugin.errors import SpecError
from tests.engine.cases import TOLERANCE, Layer, arguments, images_of, make_layer, needs_c, rows_of


def assert_close(rows: Tensor, expected: Tensor, scale: float) -> None:
    torch.testing.assert_close(rows, expected, rtol=0, atol=TOLERANCE * scale)


def packed_layer(layer: Layer) -> tuple[Packed, Tensor, Tensor | None, Tensor]:
    """Lists, rows, rows to add, and room for the result."""
    in_index, out_index, kept, residual_index = layer.indexes
    packed = pack_forward(layer.weight, layer.bias, in_index, out_index, kept, residual_index, layer.geometry)
    x, residual, *_ = arguments(layer, "c")
    return packed, x, residual, torch.full((int(layer.out_live.sum()), x.shape[1]), torch.nan)


@needs_c
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("residual", [None, 0.5])
def test_a_job_fills_its_rows_with_the_dense_convolution(residual: float | None, relu: bool) -> None:
    layer = make_layer(densities=(0.5, 0.6, residual), batch=7, outputs=9)
    packed, x, added, out = packed_layer(layer)
    job = native.Gemm(packed)
    for _ in range(2):  # its addresses are looked up once and serve every call
        job(x, out.fill_(torch.nan), residual=added, relu=relu)
        assert_close(out, rows_of(layer.dense(relu=relu), layer.out_live), layer.scale())


@needs_c
def test_nothing_is_written_where_there_is_nothing_to_compute() -> None:
    packed, x, _, out = packed_layer(make_layer(densities=(0.5, 0.0, None)))
    rest = torch.full((4, x.shape[1]), 7.0)
    native.Gemm(packed)(x, rest)
    assert (rest == 7).all()
    assert not len(out)
    packed, x, _, out = packed_layer(make_layer(batch=0))
    native.Gemm(packed)(x, out)
    assert out.shape[1] == 0


@needs_c
@pytest.mark.parametrize("batch", [0, 1, 5, 19])
def test_images_become_rows_and_back_and_rows_that_no_cell_has_are_zero(batch: int) -> None:
    layer = make_layer(inputs=3, size=(4, 5), densities=(0.4, 0.5, None), batch=batch)
    index, rows = number_rows(layer.in_live), int(layer.in_live.sum())
    cells = index.permute(1, 2, 0).flatten().contiguous().numpy()
    out = torch.full((rows + 2, batch), torch.nan)
    native.to_rows(layer.images, cells, out, rows)
    assert torch.equal(out[:rows], rows_of(layer.images, layer.in_live))
    assert not out[rows:].any()
    images = native.to_dense(out[:rows].contiguous(), cells, (3, 4, 5))
    assert torch.equal(images, images_of(out[:rows], layer.in_live))
    assert images.is_contiguous(memory_format=torch.channels_last)


@needs_c
def test_maxima_of_rows_are_those_of_the_images_in_which_dead_neurons_are_zero() -> None:
    layer = make_layer(inputs=3, size=(6, 6), densities=(0.6, 0.5, None), batch=9)
    dense = layer.images * layer.in_live
    window = Window((2, 2), (2, 2), (0, 0), (1, 1), False)
    live = F.max_pool2d(layer.in_live.float()[None], 2)[0] > 0
    x, out = rows_of(layer.images, layer.in_live).contiguous(), torch.full((int(live.sum()), 9), torch.nan)
    native.run_maxima(pool_windows(number_rows(layer.in_live), number_rows(live), window), x, out)
    assert torch.equal(out, rows_of(F.max_pool2d(dense, 2), live))


def problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why the kernel cannot be used where it lies in this folder."""
    monkeypatch.setattr(native, "__file__", str(folder / "native.py"))
    monkeypatch.setattr(native, "_library", native._library.__wrapped__)
    return str(native.native_problem())


def test_a_kernel_that_is_not_there_or_does_not_load_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        assert "not compiled when the package was installed" in problem(tmp_path, patched)
    name = f"_kernel{EXTENSION_SUFFIXES[0]}"
    (tmp_path / name).write_text("no library")
    assert problem(tmp_path, monkeypatch).startswith(f"{name} cannot be loaded: ")


@needs_c
@pytest.mark.parametrize("size", [1, 4, 8, 16])
def test_every_vector_width_gives_the_same_for_every_batch(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if size > native.lanes():
        pytest.skip(f"this machine's vectors hold {native.lanes()} values")
    monkeypatch.setattr(native, "lanes", lambda: size)
    for batch in range(1, 41):
        layer = make_layer(densities=(0.6, 0.6, 0.6), batch=batch, relu=batch % 2 == 0, outputs=9, size=(4, 3))
        assert_close(rows_conv(*arguments(layer, "c")), rows_of(layer.dense(), layer.out_live), layer.scale())


@needs_c
@pytest.mark.parametrize("size", [1, 4, 8, 16])
@pytest.mark.parametrize("batch", [1, 5, 19, 37, 70, 133])
def test_windows_of_more_rows_than_the_cache_holds_are_summed_in_parts(
    batch: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size > native.lanes():
        pytest.skip(f"this machine's vectors hold {native.lanes()} values")
    monkeypatch.setattr(native, "lanes", lambda: size)
    layer = make_layer(
        kernel=(7, 7),
        padding=(3, 3),
        size=(4, 4),
        inputs=90,
        outputs=7,
        densities=(0.9, 0.7, 0.5),
        batch=batch,
        relu=True,
    )
    assert_close(
        rows_conv(*arguments(layer, "c")), rows_of(layer.double().dense().float(), layer.out_live), layer.scale()
    )


@needs_c
@pytest.mark.parametrize(
    ("machine", "expected"),
    [(16, {1: 1, 3: 1, 4: 4, 7: 4, 8: 8, 15: 8, 16: 16, 40: 16}), (8, {1: 1, 4: 4, 8: 8, 40: 8}), (4, {3: 1, 40: 4})],
)
def test_no_vector_is_wider_than_the_batch_or_the_machine(
    machine: int, expected: dict[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "lanes", lambda: machine)
    assert {batch: native.lanes_for(batch) for batch in expected} == expected


@needs_c
def test_the_machine_has_one_of_the_compiled_widths() -> None:
    assert native.lanes() in (4, 8, 16)


@needs_c
@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_does_not_change_a_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer(size=(12, 12), densities=(0.5, 0.5, 0.5), batch=17, relu=True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    index, rows = number_rows(layer.in_live), int(layer.in_live.sum())
    alone, images = rows_conv(*arguments(layer, "c")), to_rows(layer.images, index, rows, "c")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(rows_conv(*arguments(layer, "c")), alone)
    assert torch.equal(to_rows(layer.images, index, rows, "c"), images)


@needs_c
def test_the_environment_bounds_the_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    most = native.lanes()
    native.lanes.cache_clear()
    try:
        for asked in ("1", "4", "8", "16"):
            monkeypatch.setenv(native.MOST_LANES, asked)
            assert native.lanes() == min(int(asked), most)
            native.lanes.cache_clear()
        monkeypatch.setenv(native.MOST_LANES, "12")
        with pytest.raises(SpecError, match="12"):
            native.lanes()
    finally:
        monkeypatch.delenv(native.MOST_LANES)
        native.lanes.cache_clear()
