#!/usr/bin/env bash
# torch 2.14.1's ONNX exporter, onnxconverter-common 1.16.0 and NNCF 3.4.0: a bool constant that a network multiplies with may have
# 8,192 elements; with one more the exported file is of no use to tools that work with the same constant in float32.
#
# Behaviour. A convolutional network multiplies an activation with a bool buffer. `torch.onnx.export(dynamo=True)` folds the conversion of
# the buffer to float32 if it has at most 8,192 elements (64 x 64 x 2), and leaves a Cast node in the file if it has more. The
# file of either network passes onnx's checker and runs in onnxruntime. Of the larger one (1) `convert_float_to_float16` of
# onnxconverter-common makes a file that onnxruntime does not load ("Type (tensor(float16)) of output arg ... does not match expected
# type (tensor(float))"), because the Cast still says float32; (2) `nncf.quantize` raises a bare AttributeError("type"). With the same
# buffer in float32 both work at any size.
#
# Why a good guess is wrong. What an exporter folds is expected to depend on what is constant, not on its size, and a tool for ONNX
# files to read any valid file: networks of small test images go through, and those of the images of real use do not. The limits
# are onnxscript's: constants above a size stay as they are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'torch==2.14.1' 'numpy==2.4.6' 'onnx==1.23.2' 'onnxscript==0.7.2' 'onnxruntime==1.32.0' \
    'onnxconverter-common==1.16.0' 'nncf==3.4.0'
cat > "$folder/finding.py" <<'PY'
import importlib.metadata
import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")
import nncf
import onnx
import onnxruntime
import torch
from onnxconverter_common import float16

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxconverter-common", "nncf")
print({name: importlib.metadata.version(name) for name in PACKAGES})
folder = Path(sys.argv[1])


class Network(torch.nn.Module):
    def __init__(self, side, dtype):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = torch.nn.Conv2d(3, 2, 3, padding=1), torch.nn.Conv2d(2, 4, 3, padding=1)
        self.register_buffer("mask", (torch.rand(1, 2, *side) < 0.5).to(dtype))

    def forward(self, x):
        return self.conv2((self.conv1(x) * self.mask).relu()).mean((2, 3))


def outcomes(side, dtype):
    """(number of Cast nodes, outcome in float16, outcome of NNCF)."""
    network, images = Network(side, dtype).eval(), torch.rand(2, 3, *side)
    path = str(folder / "network.onnx")
    torch.onnx.export(network, (images,), path, dynamo=True, external_data=False, verbose=False)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    name = model.graph.input[0].name
    (out,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {name: images.numpy()})
    assert abs(out - network(images).detach().numpy()).max() < 1e-5

    def halved():
        half = float16.convert_float_to_float16(onnx.load(path))
        return onnxruntime.InferenceSession(half.SerializeToString(), providers=["CPUExecutionProvider"])

    def quantised():
        return nncf.quantize(onnx.load(path), nncf.Dataset([{name: images.numpy()}]))

    told = []
    for tool in (halved, quantised):
        try:
            tool()
            told.append("works")
        except Exception as error:
            told.append(f"{type(error).__name__}: {str(error)[:60]}")
    return sum(node.op_type == "Cast" for node in model.graph.node), *told


rows = {
    (side, dtype): outcomes(side, dtype)
    for side in ((64, 64), (64, 65))
    for dtype in (torch.bool, torch.float32)
}
for (side, dtype), row in rows.items():
    print(f"{2 * side[0] * side[1]} elements, {dtype}: {row[0]} Cast; float16: {row[1]}; NNCF: {row[2]}")
large = rows.pop(((64, 65), torch.bool))
assert all(row == (0, "works", "works") for row in rows.values()), rows
assert large[0] == 1 and large[1].startswith("Fail") and "Type Error" in large[1] and large[2] == "AttributeError: type", large
print("As described.")
PY
"$folder/venv/bin/python" "$folder/finding.py" "$folder" 2>&1 | grep -vi 'statistics\|bias correction\|WARNING:nncf\|torchvision is not'
test "${PIPESTATUS[0]}" -eq 0
