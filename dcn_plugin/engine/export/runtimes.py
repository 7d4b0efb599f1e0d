"""to_openvino(), to_executorch(), to_litert(): a network in the file of a runtime, and held against torch there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from dcn_plugin.engine.export.checks import Run, check_masks, check_outputs, refused, required
from dcn_plugin.engine.export.graph import ExportModel, for_export
from dcn_plugin.errors import SpecError
from dcn_plugin.support.atomic_file import check_output, write_atomic

__all__ = ["to_executorch", "to_litert", "to_openvino"]

_Form = TypeVar("_Form")


def to_openvino(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    input_size: tuple[int, int, int] | None = None,
    dynamic_batch: bool = True,
) -> Path:
    """Write a defective network as OpenVINO's pair of files, NAME.xml and NAME.bin.

    Before they are written the network runs in OpenVINO, in float32: masked neurons are counted behind every site, and
    must all be exactly zero; the outputs are compared with torch's. Ask for ``INFERENCE_PRECISION_HINT="f32"`` where
    you compile the network, or processors that have bfloat16 use that.

    Args:
        model: as in :func:`for_export`.
        path: of the .xml file; the other one stands beside it.
        input_size: as in :func:`for_export`.
        dynamic_batch: take any number of images; otherwise one.

    Returns:
        The path of the .xml file.

    Raises:
        MissingExtraError: openvino is not installed.
        MaskLostError: a masked neuron is not zero in OpenVINO.
        ExportError: OpenVINO cannot take the network, or its outputs differ from torch's.
        SpecError: ``path`` does not end in .xml.
        NotDefectiveError, InputSizeError, TraceError, CompactError: as in :func:`for_export`.
        OutputError: the files cannot be written.

    Example:
        >>> from dcn_plugin.engine import export
        >>> export.to_openvino(net, "net.xml")  # doctest: +SKIP
    """
    target = _named(path, ".xml")
    openvino = required("openvino", "openvino")
    check_output(target.parent)
    shown = for_export(model, input_size=input_size, show_masked=True)
    try:
        converted = openvino.convert_model(_exported(shown, dynamic_batch))
    except Exception as error:  # its front end raises what it likes
        raise refused("OpenVINO", error) from error
    run = _in_openvino(openvino, converted)
    check_masks(shown, run, "OpenVINO")
    check_outputs(shown, run, "OpenVINO", (1, 3) if dynamic_batch else (1,))
    results = [output.get_node() for output in converted.outputs[: shown.outputs]]
    stripped = openvino.Model(results, converted.get_parameters(), "defective")
    check_outputs(shown, _in_openvino(openvino, stripped), "OpenVINO")
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "net.xml"
        openvino.save_model(stripped, draft, compress_to_fp16=False)
        # The weights first: a reader that finds the .xml file finds them.
        write_atomic(target.with_suffix(".bin"), draft.with_suffix(".bin").read_bytes())
        write_atomic(target, draft.read_bytes())
    return target


def to_executorch(
    model: nn.Module, path: str | os.PathLike[str], *, input_size: tuple[int, int, int] | None = None, batch: int = 1
) -> Path:
    """Write a defective network as an ExecuTorch program whose convolutions run in XNNPACK.

    Before the file is written a twin that shows its masked values runs in ExecuTorch: masked neurons are counted behind
    every site, and must all be exactly zero. Then the outputs of the program are compared with torch's.

    Args:
        model: as in :func:`for_export`.
        path: of the .pte file.
        input_size: as in :func:`for_export`.
        batch: images a call; the program takes this number alone.

    Returns:
        The path.

    Raises:
        MissingExtraError: executorch is not installed.
        MaskLostError: a masked neuron is not zero in ExecuTorch.
        ExportError: ExecuTorch cannot take the network, or its outputs differ from torch's.
        SpecError: ``path`` does not end in .pte, or ``batch`` is no whole number from 1 on.
        NotDefectiveError, InputSizeError, TraceError, CompactError: as in :func:`for_export`.
        OutputError: the file cannot be written.

    Example:
        >>> from dcn_plugin.engine import export
        >>> export.to_executorch(net, "net.pte")  # doctest: +SKIP
    """
    target = _named(path, ".pte")
    _check_batch(batch)
    for module in ("executorch.exir", "executorch.runtime"):
        required(module, "executorch")
    check_output(target.parent)
    program = _checked(model, input_size, batch, "ExecuTorch", _program, _in_executorch)
    write_atomic(target, program)
    return target


def to_litert(
    model: nn.Module, path: str | os.PathLike[str], *, input_size: tuple[int, int, int] | None = None, batch: int = 1
) -> Path:
    """Write a defective network as a LiteRT (TensorFlow Lite) file. Images stay (N, C, H, W).

    Before the file is written a twin that shows its masked values runs in LiteRT: masked neurons are counted behind
    every site, and must all be exactly zero. Then the outputs of the file are compared with torch's.

    Args:
        model: as in :func:`for_export`.
        path: of the .tflite file.
        input_size: as in :func:`for_export`.
        batch: images a call; the file takes this number alone.

    Returns:
        The path.

    Raises:
        MissingExtraError: litert-torch is not installed.
        MaskLostError: a masked neuron is not zero in LiteRT.
        ExportError: LiteRT cannot take the network, or its outputs differ from torch's.
        SpecError: ``path`` does not end in .tflite, or ``batch`` is no whole number from 1 on.
        NotDefectiveError, InputSizeError, TraceError, CompactError: as in :func:`for_export`.
        OutputError: the file cannot be written.

    Example:
        >>> from dcn_plugin.engine import export
        >>> export.to_litert(net, "net.tflite")  # doctest: +SKIP
    """
    target = _named(path, ".tflite")
    _check_batch(batch)
    litert = required("litert_torch", "litert")
    check_output(target.parent)
    converted = _checked(model, input_size, batch, "LiteRT", partial(_converted, litert), _in_litert)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "net.tflite"
        converted.export(str(draft))
        write_atomic(target, draft.read_bytes())
    return target


def _checked(
    model: nn.Module,
    input_size: tuple[int, int, int] | None,
    batch: int,
    tool: str,
    convert: Callable[[ExportModel, int], _Form],
    running: Callable[[_Form], Run],
) -> _Form:
    """A tool's form of a network for so many images a call.

    Raises:
        MaskLostError: a masked neuron is not zero in that of a twin that shows its masked values.
        ExportError: the tool cannot take the network, or its outputs differ from torch's.
    """
    shown = for_export(model, input_size=input_size, show_masked=True)
    check_masks(shown, running(convert(shown, batch)), tool, batch)
    plain = for_export(model, input_size=input_size)
    form = convert(plain, batch)
    check_outputs(plain, running(form), tool, (batch,))
    return form


def _converted(litert: Any, model: ExportModel, batch: int) -> Any:
    """The network in LiteRT's form.

    Raises:
        ExportError: LiteRT cannot take it.
    """
    try:
        return litert.convert(model, (model.example_images(batch),))
    except Exception as error:  # its passes raise what they like
        raise refused("LiteRT", error) from error


def _in_litert(network: Any) -> Run:
    def run(images: Tensor) -> list[Any]:
        outputs = network(images)
        return list(outputs) if isinstance(outputs, list | tuple) else [outputs]

    return run


def _check_batch(batch: int) -> None:
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise SpecError("batch is no number of images.", batch, "a whole number from 1 on")


def _named(path: str | os.PathLike[str], suffix: str) -> Path:
    if Path(path).suffix != suffix:
        raise SpecError("The file needs another name.", os.fspath(path), f"a name that ends in {suffix}")
    return Path(path)


def _exported(model: ExportModel, dynamic_batch: bool, batch: int = 1) -> torch.export.ExportedProgram:
    images = model.example_images(2 if dynamic_batch else batch)
    dynamic = {"images": {0: torch.export.Dim("batch", min=1)}} if dynamic_batch else None
    return torch.export.export(model, (images,), dynamic_shapes=dynamic)


def _in_openvino(openvino: Any, network: Any) -> Run:
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: Tensor) -> list[Any]:
        results = compiled([images.numpy()])
        return [results[index] for index in range(len(compiled.outputs))]

    return run


def _program(model: ExportModel, batch: int) -> bytes:
    """The network as an ExecuTorch program.

    Raises:
        ExportError: ExecuTorch cannot make one.
    """
    exir = required("executorch.exir", "executorch")
    xnnpack = required("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch")
    try:
        edge = exir.to_edge_transform_and_lower(
            _exported(model, False, batch), partitioner=[xnnpack.XnnpackPartitioner()]
        )
        return bytes(edge.to_executorch().buffer)
    except Exception as error:  # its passes raise what they like
        raise refused("ExecuTorch", error) from error


def _in_executorch(program: bytes) -> Run:
    runtime = required("executorch.runtime", "executorch")
    loaded = runtime.Runtime.get().load_program(program)
    method = loaded.load_method("forward")

    def run(images: Tensor, owners: tuple[Any, ...] = (program, loaded)) -> list[Tensor]:
        # Program and runtime stay with what runs them; outputs lie in memory that the next run overwrites.
        return [output.clone() for output in method.execute([images])]

    return run
