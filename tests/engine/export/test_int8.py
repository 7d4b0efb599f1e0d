from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from dcn_plugin.engine import export
from dcn_plugin.errors import ImageRangeError, MaskLostError, MissingExtraError
from tests.engine.export.nets import images, mobile


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return mobile()


def near(ours: Any, theirs: Any) -> bool:
    """Eight bits of two layers: a few per cent."""
    return bool(np.abs(np.asarray(ours) - np.asarray(theirs)).max() < 0.1 * np.abs(np.asarray(theirs)).max())


@pytest.mark.slow
def test_the_file_in_8_bits_is_near_the_network_and_its_weights_are_integers(net: nn.Module, tmp_path: Path) -> None:
    path = export.to_onnx_int8(net, tmp_path / "int8.onnx", images(16))
    proto = onnx.load(path)
    assert [value.name for value in proto.graph.output] == ["logits"]
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    sources = {name: node for node in proto.graph.node for name in node.output}
    assert len(convolutions) == 3
    assert all(sources[node.input[1]].op_type == "DequantizeLinear" for node in convolutions)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (logits,) = session.run(None, {"images": images(count).numpy()})
        expected = net(images(count)).detach().numpy()
        assert near(logits, expected) and not np.array_equal(logits, expected)


@pytest.mark.parametrize(
    "bad",
    [
        torch.rand(2, 3, 12, 13),
        torch.rand(0, 3, 12, 12),
        torch.rand(3, 12, 12),
        torch.zeros(2, 3, 12, 12, dtype=torch.uint8),
        torch.full((2, 3, 12, 12), torch.nan),
        "digits",
    ],
    ids=["size", "none", "no batch", "bytes", "nan", "text"],
)
def test_images_that_ranges_cannot_be_read_off_are_refused(net: nn.Module, bad: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageRangeError, match="ranges of activations"):
        export.to_onnx_int8(net, tmp_path / "int8.onnx", bad)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_quantiser_that_moves_zero_is_caught(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantised = export.int8._qdq

    def shifted(*args: Any) -> Any:
        proto = quantised(*args)
        name = proto.graph.output[-1].name
        producer = next(node for node in proto.graph.node if name in node.output)
        producer.output[list(producer.output).index(name)] = "before"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.25), "shift"))
        proto.graph.node.append(onnx.helper.make_node("Add", ["before", "shift"], [name]))
        return proto

    monkeypatch.setattr(export.int8, "_qdq", shifted)
    with pytest.raises(MaskLostError, match="quantiser does not keep masked neurons at zero"):
        export.to_onnx_int8(net, tmp_path / "int8.onnx", images(2))
    assert not list(tmp_path.iterdir())


def test_an_absent_torchao_is_a_named_error(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> Any:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(export.checks.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"torchao is not installed.*dcn-plugin\[int8\]"):
        export.to_pt2e(net, images(2))


@pytest.mark.filterwarnings("default")  # of torchao, while it is imported
def test_pt2e_is_near_the_network_at_any_batch_size(net: nn.Module) -> None:
    pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
    quantised = export.to_pt2e(net, images(16))
    assert sum("dequantize" in str(node.target) for node in quantised.graph.nodes) >= 6  # 3 layers, x and weight
    for count in (1, 3):
        assert near(quantised(images(count)).detach(), net(images(count)).detach())
