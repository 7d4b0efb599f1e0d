"""to_onnx_int8(), to_pt2e(): a defective network in 8 bits. Zero is one of the 256 values, so that masks stay exact."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from dcn_plugin.engine.export.checks import check_masks, refused, required
from dcn_plugin.engine.export.graph import ExportModel, for_export, size_for_export
from dcn_plugin.engine.export.onnx_file import EXTRA, onnx_proto, onnx_run
from dcn_plugin.errors import ExportError, ImageRangeError
from dcn_plugin.support.atomic_file import check_output, write_atomic

__all__ = ["to_onnx_int8", "to_pt2e"]


def to_onnx_int8(
    model: nn.Module,
    path: str | os.PathLike[str],
    images: Tensor,
    *,
    input_size: tuple[int, int, int] | None = None,
    opset: int | None = None,
    batch: int = 32,
) -> Path:
    """Write a defective network as an ONNX file in 8 bits, by onnxruntime's quantiser.

    The quantisation is static, in QDQ form, weights per channel. Before the file is written it runs in onnxruntime:
    masked neurons are counted behind every site, and must all be exactly zero. How far 8 bits move the outputs depends
    on the network: measure its accuracy.

    Args:
        model: as in :func:`for_export`.
        path: of the file.
        images: (N, C, H, W) as the network takes them; the ranges of activations are read off them.
        input_size: as in :func:`for_export`.
        opset: as in :func:`to_onnx`.
        batch: images that run at once while ranges are read.

    Returns:
        The path.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        ImageRangeError: ``images`` is not a batch of finite images of the network's size.
        MaskLostError: a masked neuron is not zero in 8 bits.
        ExportError: the quantiser cannot take the network.
        NotDefectiveError, InputSizeError, TraceError, CompactError: as in :func:`for_export`.
        OutputError: the file cannot be written.

    Example:
        >>> from dcn_plugin.engine import export
        >>> export.to_onnx_int8(net, "net.int8.onnx", images)  # doctest: +SKIP
    """
    for module in ("onnx", "onnxscript", "onnxruntime.quantization"):
        required(module, EXTRA)
    check_output(Path(path).parent)
    _check_images(images, size_for_export(model, input_size))
    shown = for_export(model, input_size=input_size, show_masked=True)
    quantised = _qdq(onnx_proto(shown, opset=opset, dynamic_batch=True), images, batch)
    check_masks(shown, onnx_run(quantised.SerializeToString()), "onnxruntime's quantiser")
    del quantised.graph.output[shown.outputs :]
    content = quantised.SerializeToString()
    onnx_run(content)  # it loads
    write_atomic(path, content)
    return Path(path)


def to_pt2e(
    model: nn.Module,
    images: Tensor,
    *,
    quantizer: Any = None,
    input_size: tuple[int, int, int] | None = None,
) -> fx.GraphModule:
    """Quantise a defective network with torchao's pt2e: a graph for ``torch.compile``, in 8 bits.

    Masked neurons are counted behind every site of a twin that shows them, and must all be exactly zero.

    Args:
        model: as in :func:`for_export`.
        images: (N, C, H, W) as the network takes them; the ranges of activations are read off them. The result takes
            any number of images.
        quantizer: of torchao's; None: the one for x86 processors with its default configuration.
        input_size: as in :func:`for_export`.

    Returns:
        The quantised graph; ``torch.compile`` makes it fast.

    Raises:
        MissingExtraError: torchao is not installed.
        ImageRangeError: ``images`` is not a batch of finite images of the network's size.
        MaskLostError: a masked neuron is not zero in 8 bits.
        ExportError: torchao cannot take the network, or leaves all of it in floating point.
        NotDefectiveError, InputSizeError, TraceError, CompactError: as in :func:`for_export`.

    Example:
        >>> from dcn_plugin.engine import export
        >>> export.to_pt2e(net, images)  # doctest: +SKIP
    """
    required("torchao.quantization.pt2e.quantize_pt2e", "int8")
    if quantizer is None:
        x86 = required("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer", "int8")
        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    _check_images(images, size_for_export(model, input_size))
    plain = for_export(model, input_size=input_size)
    shown = for_export(model, input_size=input_size, show_masked=True)
    check_masks(shown, _pt2e(shown, images, quantizer), "torchao")
    return _pt2e(plain, images, quantizer)


def _check_images(images: Tensor, size: tuple[int, int, int]) -> None:
    shape = tuple(images.shape) if isinstance(images, Tensor) else None
    usable = shape is not None and len(shape) == 4 and shape[0] > 0 and shape[1:] == size
    if not usable or not images.is_floating_point() or not bool(images.isfinite().all()):
        raise ImageRangeError(
            "The ranges of activations cannot be read off these images.",
            images,
            f"finite floating-point images (N, {', '.join(map(str, size))})",
            "pass some hundred images of your data, as the network takes them",
        )


def _qdq(proto: Any, images: Tensor, batch: int) -> Any:
    """The ``onnx.ModelProto`` in 8 bits.

    Raises:
        ExportError: the quantiser cannot take it.
    """
    onnx, quantization = required("onnx", EXTRA), required("onnxruntime.quantization", EXTRA)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.pieces = iter(images.cpu().split(batch))

        def get_next(self) -> dict[str, Any] | None:
            piece = next(self.pieces, None)
            return None if piece is None else {"images": piece.numpy()}

    with tempfile.TemporaryDirectory() as folder, _quiet():
        draft = Path(folder) / "int8.onnx"
        try:
            quantization.quantize_static(
                proto,
                draft,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
            )
        except Exception as error:  # the quantiser raises what it likes
            raise refused("onnxruntime's quantiser", error) from error
        return onnx.load(draft)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the advice to run onnxruntime's preprocessing: what that does, for_export has done."""
    logger = logging.getLogger()
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _pt2e(model: ExportModel, images: Tensor, quantizer: Any) -> fx.GraphModule:
    """The network in 8 bits.

    Raises:
        ExportError: torchao cannot take it, or leaves all of it in floating point.
    """
    pt2e = required("torchao.quantization.pt2e.quantize_pt2e", "int8")
    dynamic = {"images": {0: torch.export.Dim("batch", min=1)}}
    try:
        # Strict, or the quantiser for x86 finds no convolution that is a function, and says nothing of it
        # (findings/torchao_x86_quantizer_skips_functional_convolutions.sh).
        exported = torch.export.export(model, (model.example_images(2),), dynamic_shapes=dynamic, strict=True)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The input of .* is not quantized, skip annotate")
            prepared = pt2e.prepare_pt2e(exported.module(), quantizer)
            prepared(images)
            quantised: fx.GraphModule = pt2e.convert_pt2e(prepared)
    except Exception as error:  # observers and passes raise what they like
        raise refused("torchao", error) from error
    if not any("dequantize" in str(node.target) for node in quantised.graph.nodes):
        raise ExportError(
            "torchao's quantiser left the whole network in floating point.",
            type(quantizer).__name__,
            "a quantizer that knows convolutions",
            "set its configuration, or leave quantizer out",
        )
    return quantised
