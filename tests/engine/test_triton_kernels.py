from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch

from dcn_plugin import engine
from dcn_plugin.engine import triton_kernels
from dcn_plugin.engine.packing import Packed, pack_forward
from dcn_plugin.engine.triton_kernels import PRODUCT_OUTPUTS, best_outputs, tiles_of, triton_problem
from tests.engine.cases import Layer, make_layer, needs_triton


@needs_triton
def test_without_a_gpu_the_reason_names_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert "no CUDA device" in str(triton_problem())
    assert "TRITON_INTERPRET=1" in str(triton_problem())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton_problem() is None


@needs_triton
def test_with_a_gpu_the_model_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert triton_problem() is None
    assert triton_problem(torch.device("cuda")) is None
    assert triton_problem(torch.device("cpu")) == "the model is on cpu"


def test_without_triton_the_reason_is_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels.importlib.util, "find_spec", lambda name: None)
    assert triton_problem() == "Triton is not installed"


def test_without_triton_the_file_can_be_imported_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "dcn_plugin.engine.triton_jit", raising=False)
    monkeypatch.delitem(sys.modules, "dcn_plugin.engine.triton_kernels")
    monkeypatch.setattr(engine, "triton_kernels", triton_kernels)  # put back afterwards: importing replaces it
    fresh = importlib.import_module("dcn_plugin.engine.triton_kernels")
    assert fresh is not triton_kernels
    with pytest.raises(ImportError, match="triton"):
        importlib.import_module("dcn_plugin.engine.triton_jit")


def packed(layer: Layer) -> Packed:
    in_index, out_index, kept, residual_index = layer.indexes
    return pack_forward(layer.weight, layer.bias, in_index, out_index, kept, residual_index, layer.geometry)


@pytest.mark.parametrize("outputs", PRODUCT_OUTPUTS)
def test_tiles_hold_every_write_once_beside_the_reads_of_its_group(outputs: int) -> None:
    lists = packed(make_layer(inputs=4, outputs=90, densities=(0.5, 0.6, 0.3)))
    tiles = tiles_of(lists, outputs)
    written = []
    for read, read_end, write, write_end in tiles:
        (group,) = np.flatnonzero((lists.write_start[:-1] <= write) & (write < lists.write_start[1:]))
        assert write < write_end <= lists.write_start[group + 1]
        assert (read, read_end) == (lists.read_start[group], lists.read_start[group + 1])
        written.extend(range(write, write_end))
    assert written == list(range(len(lists.writes)))
    assert np.diff(tiles[:, 2:]).max() <= outputs


def test_a_group_is_cut_evenly() -> None:
    lists = packed(
        make_layer(kernel=(1, 1), padding=(0, 0), size=(1, 1), inputs=3, outputs=70, densities=(1.0, 1.0, None))
    )
    assert np.diff(tiles_of(lists, 32)[:, 2:]).ravel().tolist() == [23, 23, 24]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (make_layer(inputs=8, outputs=10, densities=(0.3, 1.0, None)), 16),
        (make_layer(inputs=8, outputs=32, densities=(0.3, 1.0, None)), 32),
        (make_layer(inputs=8, outputs=64, densities=(0.3, 1.0, None)), 64),
        (make_layer(groups=6, inputs=1, outputs=1), None),
        (make_layer(kernel=(1, 1), padding=(0, 0), groups=6, inputs=1, outputs=1), None),
        (make_layer(densities=(0.5, 0.0, 0.5)), None),
        (make_layer(densities=(0.5, 0.0, None)), None),
    ],
    ids=["10 outputs", "32 outputs", "64 outputs", "depthwise", "pointwise", "residual only", "empty"],
)
def test_outputs_that_share_their_reads_are_computed_together(layer: Layer, expected: int | None) -> None:
    assert best_outputs(packed(layer)) == expected
