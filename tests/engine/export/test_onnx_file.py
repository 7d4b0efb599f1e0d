from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.engine import export
from dcn_plugin.errors import ExportError, MaskLostError, MissingExtraError, NotDefectiveError, SpecError
from tests.engine.export.nets import images, mobile


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return mobile()


@pytest.fixture(scope="module")
def path(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export.to_onnx(net, tmp_path_factory.mktemp("onnx") / "net.onnx")


def run(content: bytes, x: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": x})  # type: ignore[no-any-return]


def test_the_file_computes_what_the_network_computes_for_any_number_of_images(net: nn.Module, path: Path) -> None:
    proto = onnx.load(path)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["images", "logits"]
    for count in (1, 4):
        (logits,) = run(path.read_bytes(), images(count).numpy())
        expected = net(images(count)).detach().numpy()
        assert np.allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_masked_neurons_in_the_file_are_exactly_zero(net: nn.Module, path: Path) -> None:
    """Seen in the file itself: the outputs of all operations that read a constant as large as a mask."""
    proto = onnx.load(path)
    constants = {value.name: tuple(value.dims) for value in proto.graph.initializer}
    behind = [
        node.output[0]
        for node in proto.graph.node
        if node.op_type in ("Mul", "Min") and any(constants.get(name) == (1, 64, 12, 12) for name in node.input)
    ]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in behind)
    _, *values = run(proto.SerializeToString(), images(2).numpy())
    sites = dcn.defect_spec(net).sites
    assert len(values) == len(sites) == 3
    for site, value in zip(sites, values, strict=True):
        dead = (~dcn.sample_mask(site.mask, site.shape, site=site.ordinal)).numpy()
        assert (value[:, dead] == 0).all() and (value[:, ~dead] != 0).any()


def test_no_conversion_of_masks_is_left_in_the_file(path: Path) -> None:
    proto = onnx.load(path)
    assert "Cast" not in {node.op_type for node in proto.graph.node}
    assert onnx.TensorProto.BOOL not in {value.data_type for value in proto.graph.initializer}


@pytest.mark.parametrize("opset", [9, 17, True, "18", 18.0])
def test_an_opset_that_cannot_be_exported_is_refused_at_once(net: nn.Module, opset: Any, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="opset"):
        export.to_onnx(net, tmp_path / "net.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_a_network_without_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotDefectiveError):
        export.to_onnx(nn.Conv2d(3, 4, 3), tmp_path / "net.onnx")


def test_an_absent_onnx_is_a_named_error(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = export.checks.importlib.import_module

    def without(name: str) -> Any:
        if name == "onnxscript":
            raise ModuleNotFoundError(name)
        return imported(name)

    monkeypatch.setattr(export.checks.importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=r"onnxscript.*dcn-plugin\[onnx\]"):
        export.to_onnx(net, tmp_path / "net.onnx")


def test_a_runtime_that_loses_a_mask_is_caught(net: nn.Module) -> None:
    shown = export.for_export(net, show_masked=True)
    site = list(shown.dead)[2]
    with pytest.raises(MaskLostError, match=rf"{shown.dead[site].sum()} at {site}"):
        export.checks.check_masks(shown, lambda x: [*shown(x)[:-1], shown(x)[-1] + 1e-30], "A runtime")


@pytest.mark.parametrize("change", [lambda y: y.bfloat16(), lambda y: y * torch.nan, lambda y: y[:, :1]])
def test_a_runtime_that_computes_something_else_is_caught(net: nn.Module, change: Any) -> None:
    exported = export.for_export(net)
    export.checks.check_outputs(exported, lambda x: [exported(x)], "A runtime", (1, 2))
    with pytest.raises(ExportError, match="A runtime computes"):
        export.checks.check_outputs(exported, lambda x: [change(exported(x))], "A runtime")


def test_an_operation_that_the_exporter_does_not_know_is_a_named_error(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such operation\nand a page of advice")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(ExportError, match=r"torch.onnx cannot take the network: no such operation Fix"):
        export.to_onnx(net, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenetv2_100", "efficientnet_b0", "resnet18"])
def test_real_networks_at_their_own_size(name: str, tmp_path: Path) -> None:
    import timm

    torch.manual_seed(0)
    net = timm.create_model(f"defective_{name}", p=0.3).eval()
    path = export.to_onnx(net, tmp_path / "net.onnx", opset=20, dynamic_batch=False)
    x = torch.rand(1, 3, 224, 224)
    (logits,) = run(path.read_bytes(), x.numpy())
    with torch.no_grad():
        expected = net(x).numpy()
    assert np.allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert next(entry.version for entry in onnx.load(path).opset_import if entry.domain == "") == 20
