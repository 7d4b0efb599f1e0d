#!/usr/bin/env bash
# torch 2.14.1: a function that `torch.fx.wrap` keeps whole is taken apart, or fails, once the graph went through `fx.Transformer`.
#
# Behaviour. A function with a condition on values is marked with `torch.fx.wrap`, and `symbolic_trace` keeps it as one call. The
# graph can be traced again as often as one likes. After `torch.fx.Transformer(graph).transform()`, with nothing overridden, the same
# call is entered by the next trace: TraceError. torch's own `torch.fx.experimental.optimization.optimize_for_inference`
# transforms and traces again, so that it fails on every network with such a function.
#
# Why a good guess is wrong. The Transformer is documented to produce the same graph where nothing is overridden, and `wrap` to hold for
# the function. The mark is kept in the note of a node ("is_wrapped"), from which generated code repeats it, and the Transformer
# makes new nodes without the notes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'torch==2.14.1' 'numpy==2.4.6'
cat > "$folder/finding.py" <<'PY'
import copy
import warnings

warnings.simplefilter("ignore")
import torch
from torch import fx, nn
from torch.fx.experimental.optimization import optimize_for_inference

print("torch", torch.__version__)


@fx.wrap
def halve_if_large(x):
    return x / 2 if x.abs().max() > 1 else x


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return halve_if_large(self.norm(self.conv(x)))


def attempt(trace):
    try:
        trace()
    except fx.proxy.TraceError as error:
        return f"TraceError: {error}"
    return "fine"


network = Network().eval()
graph = fx.symbolic_trace(network)
results = {
    "traced": attempt(lambda: fx.symbolic_trace(network)),
    "traced again": attempt(lambda: fx.symbolic_trace(graph)),
    "transformed, traced again": attempt(lambda: fx.symbolic_trace(fx.Transformer(graph).transform())),
    "optimize_for_inference": attempt(lambda: optimize_for_inference(copy.deepcopy(network))),
}
for name, result in results.items():
    print(f"{name:27}: {result}")
assert [result.partition(":")[0] for result in results.values()] == ["fine", "fine", "TraceError", "TraceError"]
PY
"$folder/venv/bin/python" "$folder/finding.py"
