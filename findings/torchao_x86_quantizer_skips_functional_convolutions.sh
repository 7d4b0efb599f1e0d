#!/usr/bin/env bash
# torchao 0.18.0: pt2e with the x86 quantiser leaves convolutions that are function calls in floating point, without a word.
#
# Behaviour. A network whose forward calls `torch.nn.functional.conv2d`, exported by `torch.export.export` as it is by default (not
# strict), comes back from `prepare_pt2e` and `convert_pt2e` with no quantised convolution: same speed, same size, and an accuracy that
# looks like a perfect quantisation. The same network of `nn.Conv2d` modules is quantised, and so is the one of functions if it is
# exported with `strict=True`: only then the graph carries the note by which the quantiser finds them.
#
# Why a good guess is wrong. Both exports give the same graph of aten.conv2d calls, which is what a quantiser works on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'torchao==0.18.0' 'torch==2.14.1' 'numpy==2.4.6'
cat > "$folder/finding.py" <<'PY'
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(8, 3, 3, 3))

    def forward(self, x):
        return F.relu(F.conv2d(x, self.weight))


def quantised_operations(net, strict):
    images = torch.rand(2, 3, 16, 16)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(net, (images,), strict=strict).module(), quantizer)
    prepared(images)
    graph = convert_pt2e(prepared)
    return sum("quantize" in str(node.target) for node in graph.graph.nodes)


print("torchao", version("torchao"), "torch", torch.__version__)
modules = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
counts = {
    "modules": quantised_operations(modules, strict=False),
    "functions": quantised_operations(Functional().eval(), strict=False),
    "functions, strict": quantised_operations(Functional().eval(), strict=True),
}
for name, count in counts.items():
    print(f"{name:18} {count} quantising operations")
assert counts["functions"] == 0 and counts["modules"] > 0 and counts["functions, strict"] > 0
PY
"$folder/venv/bin/python" "$folder/finding.py"
