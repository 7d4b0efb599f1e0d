"""The runtimes are optional: a test of one that is not installed is a skip that says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.engine import export
from dcn_plugin.errors import ExportError, MaskLostError, MissingExtraError, NotDefectiveError, SpecError
from tests.engine.export.nets import images, mobile

Write = Callable[..., Path]
# Format -> how it is written, how its file ends, and the module that it needs.
ROUTES: dict[str, tuple[Write, str, str]] = {
    "OpenVINO": (export.to_openvino, "xml", "openvino"),
    "ExecuTorch": (export.to_executorch, "pte", "executorch.exir"),
    "LiteRT": (export.to_litert, "tflite", "litert_torch"),
}
# What the tools warn of while they are imported, and while they convert.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return mobile()


def close(ours: Any, theirs: Any) -> bool:
    return np.allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_openvino_reads_the_file_and_computes_what_the_network_computes(net: nn.Module, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    path = export.to_openvino(net, tmp_path / "net.xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["net.bin", "net.xml"]
    read = openvino.Core().read_model(path)
    assert len(read.outputs) == 1 and read.inputs[0].partial_shape[0].is_dynamic
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for count in (1, 3):
        assert close(compiled([images(count).numpy()])[0], net(images(count)).detach().numpy())


def test_openvino_keeps_masked_neurons_at_zero(net: nn.Module) -> None:
    openvino = pytest.importorskip("openvino")
    shown = export.for_export(net, show_masked=True)
    converted = openvino.convert_model(torch.export.export(shown, (images(1),)))
    results = openvino.compile_model(converted, "CPU")([images(1).numpy()])  # in whatever precision it likes
    values = [results[number] for number in range(len(converted.outputs))]
    assert shown.leaks(values) == {}
    assert all(
        (value[:, ~dead.numpy()] != 0).any() for value, dead in zip(values[1:], shown.dead.values(), strict=True)
    )


@pytest.mark.slow
def test_executorch_runs_the_file_and_computes_what_the_network_computes(net: nn.Module, tmp_path: Path) -> None:
    runtime = pytest.importorskip("executorch.runtime")
    content = export.to_executorch(net, tmp_path / "net.pte", batch=2).read_bytes()
    method = runtime.Runtime.get().load_program(content).load_method("forward")
    (logits,) = method.execute([images(2)])
    assert close(logits.numpy(), net(images(2)).detach().numpy())


@pytest.mark.slow
def test_litert_runs_the_file_and_computes_what_the_network_computes(net: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    interpreter_module = pytest.importorskip("ai_edge_litert.interpreter")
    path = export.to_litert(net, tmp_path / "net.tflite", batch=2)
    interpreter = interpreter_module.Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images(2).numpy())
    interpreter.invoke()
    (output,) = interpreter.get_output_details()
    assert close(interpreter.get_tensor(output["index"]), net(images(2)).detach().numpy())


@pytest.mark.parametrize("name", ROUTES)
def test_a_file_of_another_name_is_refused(name: str, net: nn.Module, tmp_path: Path) -> None:
    write, suffix, _ = ROUTES[name]
    with pytest.raises(SpecError, match=rf"ends in \.{suffix}"):
        write(net, tmp_path / "net.onnx")


@pytest.mark.parametrize("batch", [0, -1, True, 1.0, "1"])
@pytest.mark.parametrize("name", ["ExecuTorch", "LiteRT"])
def test_a_batch_that_is_no_number_of_images_is_refused(name: str, batch: Any, net: nn.Module, tmp_path: Path) -> None:
    write, suffix, _ = ROUTES[name]
    with pytest.raises(SpecError, match="no number of images"):
        write(net, tmp_path / f"net.{suffix}", batch=batch)


@pytest.mark.parametrize("name", ROUTES)
def test_an_absent_tool_is_a_named_error(
    name: str, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, suffix, needed = ROUTES[name]

    def absent(module: str) -> Any:
        raise ModuleNotFoundError(module)

    monkeypatch.setattr(export.checks.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=rf"{needed.partition('.')[0]} is not installed.*pip install"):
        write(net, tmp_path / f"net.{suffix}")
    assert not list(tmp_path.iterdir())


class Stand:
    """In the place of litert_torch: "converts" by handing on the network, changed."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.change = change

    def convert(self, model: nn.Module, _: Any) -> Any:
        return lambda x: self.change(model(x))


def refuses(_: Any) -> Any:
    raise AssertionError("no such operation\nand a page of advice")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda out: (*out[:-1], out[-1] + 1e-30) if isinstance(out, tuple) else out, MaskLostError),
        (lambda out: out if isinstance(out, tuple) else out + 1, ExportError),
    ],
)
def test_nothing_is_written_of_a_network_that_the_tool_changes(
    change: Any, error: type[Exception], net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.runtimes, "required", lambda *_: Stand(change))
    with pytest.raises(error, match=r"LiteRT.*nothing was written"):
        export.to_litert(net, tmp_path / "net.tflite")
    assert not list(tmp_path.iterdir())


def test_what_a_tool_says_of_a_network_that_it_refuses_is_one_line(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = Stand(lambda out: out)
    monkeypatch.setattr(stand, "convert", lambda *_: refuses(None))
    monkeypatch.setattr(export.runtimes, "required", lambda *_: stand)
    with pytest.raises(ExportError, match="LiteRT cannot take the network: no such operation Fix"):
        export.to_litert(net, tmp_path / "net.tflite")


def test_a_network_without_masks_is_refused_before_any_tool_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.runtimes, "required", lambda *_: Stand(refuses))
    with pytest.raises(NotDefectiveError):
        export.to_litert(dcn.undefectify(mobile()), tmp_path / "net.tflite")
