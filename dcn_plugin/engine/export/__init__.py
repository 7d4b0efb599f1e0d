"""Defective networks in the form of other tools: ONNX, OpenVINO, ExecuTorch, LiteRT, 8 bits.

Every route prepares the network with :func:`for_export`, counts masked neurons in what the tool made, and compares its
outputs with torch's before anything is written.
"""

from dcn_plugin.engine.export.graph import ExportModel, for_export
from dcn_plugin.engine.export.int8 import to_onnx_int8, to_pt2e
from dcn_plugin.engine.export.onnx_file import to_onnx
from dcn_plugin.engine.export.runtimes import to_executorch, to_litert, to_openvino

__all__ = [
    "ExportModel",
    "for_export",
    "to_executorch",
    "to_litert",
    "to_onnx",
    "to_onnx_int8",
    "to_openvino",
    "to_pt2e",
]
