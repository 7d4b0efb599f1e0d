"""Rows of the interop matrix: tools that work on the file of a network which ``for_export`` has prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.models import cifar_resnet
from tests.interop.probe import IMAGES, NETS, SIZE, make, needs

ONE = IMAGES[:1]
Outputs = tuple[Tensor, ...]


LARGE = "large masks"
CASES = (*NETS, LARGE)


def network(name: str) -> nn.Module:
    """One of the nets of the matrix, or one with masks of more than 8,192 elements, which exporters treat otherwise."""
    if name != LARGE:
        return make(name)
    torch.manual_seed(0)
    return dcn.defectify(cifar_resnet((1, 1, 1), width=16), "all", 0.4, input_size=SIZE, seed=3).eval()


def write_onnx(shown: Any, path: Path) -> Any:
    """The ONNX model of a network that shows its masked neurons."""
    onnx = needs("onnx")
    needs("onnxscript")
    torch.onnx.export(shown, (IMAGES,), path, dynamo=True, external_data=False, verbose=False)
    return onnx.load(path)


def run_onnx(model: Any) -> Outputs:
    session = needs("onnxruntime").InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    images = IMAGES.numpy().astype(np.float16 if "16" in given.type else np.float32)
    return tuple(torch.from_numpy(out).float() for out in session.run(None, {given.name: images}))


def in_float16(model: Any, _: Path) -> Outputs:
    return run_onnx(needs("onnxconverter_common.float16").convert_float_to_float16(model))


def slimmed(model: Any, path: Path) -> Outputs:
    return run_onnx(needs("onnxslim").slim(str(path)))


def quantised_by_nncf(model: Any, _: Path) -> Outputs:
    nncf = needs("nncf")
    images = nncf.Dataset([{model.graph.input[0].name: IMAGES.numpy()}])
    return run_onnx(nncf.quantize(model, images))


# How far the logits may move, as a share of the largest.
TOOLS: dict[str, tuple[Callable[[Any, Path], Outputs], float]] = {
    "onnxconverter-common, float16": (in_float16, 1e-2),
    "onnxslim": (slimmed, 1e-5),
    "NNCF, 8 bits": (quantised_by_nncf, 0.2),
}


def assert_silent_and_near(shown: Any, outputs: Outputs, share: float) -> None:
    expected = shown(IMAGES)
    assert len(outputs) == len(expected)
    assert shown.leaks(outputs) == {}
    assert (outputs[0] - expected[0]).abs().max() <= share * expected[0].abs().max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter and of the tools
@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", CASES)
def test_a_tool_on_the_onnx_file_keeps_masked_neurons_at_zero(name: str, tool: str, tmp_path: Path) -> None:
    run, share = TOOLS[tool]
    shown = dcn.for_export(network(name), show_masked=True)
    model = write_onnx(shown, tmp_path / "net.onnx")
    assert_silent_and_near(shown, run(model, tmp_path / "net.onnx"), share)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_file_without_its_masks_is_noticed(tmp_path: Path) -> None:
    helper = needs("onnx.numpy_helper")
    shown = dcn.for_export(make(), show_masked=True)
    model = write_onnx(shown, tmp_path / "net.onnx")
    masks = 0
    for constant in model.graph.initializer:
        values = helper.to_array(constant)
        if values.ndim >= 3 and set(np.unique(values)) == {0.0, 1.0}:
            constant.CopyFrom(helper.from_array(np.ones_like(values), constant.name))
            masks += 1
    assert masks > 0 and shown.leaks(run_onnx(model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pnnx traces, which torch has deprecated
@pytest.mark.parametrize("name", CASES)
def test_ncnn_keeps_masked_neurons_at_zero(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ncnn, pnnx = needs("ncnn"), needs("pnnx")
    shown = dcn.for_export(network(name), show_masked=True)
    pnnx.export(shown, str(tmp_path / "net.pt"), (ONE,), fp16=False)
    capfd.readouterr()  # a page of its passes
    runner = ncnn.Net()
    runner.opt.use_fp16_packed = runner.opt.use_fp16_storage = runner.opt.use_fp16_arithmetic = False
    runner.load_param(str(tmp_path / "net.ncnn.param"))
    runner.load_model(str(tmp_path / "net.ncnn.bin"))
    images = []
    for image in IMAGES:
        extractor = runner.create_extractor()
        extractor.input("in0", ncnn.Mat(image.contiguous().numpy()).clone())
        # Copies: an ncnn.Mat and an array share their memory.
        found = [extractor.extract(f"out{number}")[1] for number in range(len(shown(ONE)))]
        images.append([torch.from_numpy(np.array(out)).float() for out in found])
    outputs = tuple(torch.stack(both) for both in zip(*images, strict=True))
    assert_silent_and_near(shown, outputs, 1e-3)
