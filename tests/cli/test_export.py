from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from dcn_plugin import cli
from dcn_plugin.engine import export
from tests.cli import factory
from tests.engine.export.nets import images, mobile

MODEL = "tests.engine.export.nets:mobile"


@pytest.mark.slow
def test_it_writes_an_onnx_file_and_says_what_was_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.onnx"
    assert cli.main(["export", MODEL, "--to", "onnx", "--out", str(path), "--batch", "1"]) == 0
    assert f"{path}: every masked neuron is exactly zero" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 12, 12]
    (logits,) = session.run(None, {"images": images(1).numpy()})
    with torch.no_grad():
        expected = mobile()(images(1)).numpy()
    assert np.allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("arguments", "function", "options"),
    [
        (["onnx", "net.onnx", "--opset", "20"], "to_onnx", {"opset": 20, "dynamic_batch": True}),
        (["onnx", "net.onnx", "--batch", "1"], "to_onnx", {"opset": None, "dynamic_batch": False}),
        (["openvino", "net.xml"], "to_openvino", {"dynamic_batch": True}),
        (["executorch", "net.pte"], "to_executorch", {"batch": 1}),
        (["litert", "net.tflite", "--batch", "4"], "to_litert", {"batch": 4}),
    ],
)
def test_every_format_has_its_function(
    arguments: list[str], function: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Path, dict[str, Any]]] = []
    monkeypatch.setattr(export, function, lambda _, path, **given: calls.append((path, given)))
    to, out, *rest = arguments
    assert cli.main(["export", MODEL, "--to", to, "--out", out, *rest]) == 0
    assert calls == [(Path(out), options)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--to", "onnx", "--out", "net.xml"], "ends in .onnx"),
        (["--to", "openvino", "--out", "net.onnx"], "ends in .xml"),
        (["--to", "openvino", "--out", "net.xml", "--opset", "20"], "--opset is for onnx alone"),
        (["--to", "onnx", "--out", "net.onnx", "--batch", "8"], "any number of images, or one"),
        (["--to", "onnx", "--out", "net.onnx", "--opset", "9"], "no opset that can be exported"),
    ],
)
def test_what_does_not_go_together_is_an_error_in_one_line(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", MODEL, *arguments]) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_network_without_masks_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["export", f"{factory.__name__}:resnet", "--to", "onnx", "--out", str(tmp_path / "a.onnx")]) == 2
    assert "no masks to export" in capsys.readouterr().err


def test_the_format_and_the_file_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", MODEL])
    assert "--to" in capsys.readouterr().err
