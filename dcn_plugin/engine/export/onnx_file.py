"""to_onnx(): a defective network as an ONNX file, held against torch in onnxruntime."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcn_plugin.engine.export.checks import Run, check_masks, check_outputs, refused, required
from dcn_plugin.engine.export.graph import ExportModel, for_export
from dcn_plugin.errors import ExportError, SpecError
from dcn_plugin.support.atomic_file import check_output, write_atomic

__all__ = ["onnx_proto", "onnx_run", "to_onnx"]

EXTRA = "onnx"
LEAST_OPSET = 18
LARGEST = 2**31 - 1
"""Bytes that one protobuf message may have."""


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input_size: tuple[int, int, int] | None = None,
    opset: int | None = None,
    dynamic_batch: bool = True,
) -> Path:
    """Write a defective network as an ONNX file.

    Before the file is written its graph runs in onnxruntime: masked neurons are counted behind every site, and must all
    be exactly zero; the outputs are compared with torch's. The input is called "images"; the output "logits", or
    "output_0", "output_1" ... if there are several.

    Args:
        model: as in :func:`for_export`.
        path: of the file.
        input_size: as in :func:`for_export`.
        opset: version of ONNX's operators; None: the exporter's own choice.
        dynamic_batch: take any number of images; otherwise one.

    Returns:
        The path.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        MaskLostError: a masked neuron is not zero in onnxruntime.
        ExportError: the outputs differ from torch's, or the network is too large for one file.
        SpecError: ``opset`` is no whole number from 18 on.
        NotDefectiveError, InputSizeError, TraceError, CompactError: as in :func:`for_export`.
        OutputError: the file cannot be written.

    Example:
        >>> from dcn_plugin.engine import export
        >>> export.to_onnx(net, "net.onnx").name
        'net.onnx'
    """
    if opset is not None and (isinstance(opset, bool) or not isinstance(opset, int) or opset < LEAST_OPSET):
        raise SpecError(
            "This is no opset that can be exported.", opset, f"a whole number from {LEAST_OPSET} on, or None"
        )
    for module in ("onnx", "onnxscript", "onnxruntime"):
        required(module, EXTRA)
    check_output(Path(path).parent)
    shown = for_export(model, input_size=input_size, show_masked=True)
    proto = onnx_proto(shown, opset=opset, dynamic_batch=dynamic_batch)
    check_masks(shown, onnx_run(proto.SerializeToString()), "onnxruntime")
    del proto.graph.output[shown.outputs :]
    if proto.ByteSize() > LARGEST:
        raise ExportError("The network is too large for one ONNX file.", proto.ByteSize(), f"{LARGEST} bytes")
    content = proto.SerializeToString()
    check_outputs(shown, onnx_run(content), "onnxruntime", (1, 3) if dynamic_batch else (1,))
    write_atomic(path, content)
    return Path(path)


def onnx_proto(model: ExportModel, *, opset: int | None, dynamic_batch: bool) -> Any:
    """The network as an ``onnx.ModelProto``.

    Raises:
        ExportError: the exporter cannot do it.
    """
    names = ["logits"] if model.outputs == 1 else [f"output_{number}" for number in range(model.outputs)]
    dynamic = ({0: torch.export.Dim("batch", min=1)},) if dynamic_batch else None
    try:
        with warnings.catch_warnings():
            # onnxscript and onnx_ir use names that numpy and torch have deprecated; the export does not depend on them.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.onnx.export(
                model,
                (model.example_images(2 if dynamic_batch else 1),),
                dynamo=True,
                verbose=False,
                input_names=["images"],
                output_names=names,
                opset_version=opset,
                dynamic_shapes=dynamic,
            )
    except Exception as error:  # the exporter raises whatever its passes raise
        raise refused("torch.onnx", error) from error
    assert program is not None
    return program.model_proto


def onnx_run(content: bytes | str) -> Run:
    """An ONNX model, its bytes or the path of its file, in onnxruntime on the CPU."""
    onnxruntime = required("onnxruntime", EXTRA)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})
