#!/usr/bin/env bash
# optimum-quanto 0.2.7, thop 0.1.1 and ptflops 0.7.5: what a subclass of nn.Conv2d adds is left out, and nothing says so.
#
# Behaviour. timm's networks of the BiT and NormFree families have convolutions that standardise their weights (StdConv2d), those with a
# "tf_" in front convolutions that pad as TensorFlow does (Conv2dSame): subclasses of nn.Conv2d with a forward of their own. (1)
# `quantize` of quanto puts a QConv2d in the place of each, which convolves with the raw weights and the padding of the
# attribute: a quantised network with an error above the size of its logits, where one of plain convolutions keeps to a few
# per cent. (2) `thop.profile` counts nothing for such a layer: 0.002 of the 4.1 billion multiplications of a
# resnetv2_50x1_bit. ptflops with its backend "pytorch" leaves them out as well; its backend "aten" counts them.
#
# Why a good guess is wrong. quanto looks for nn.Conv2d with isinstance, so that a subclass is known to it, and the layers that it does
# not know it leaves as they are. Both counters count a plain network of the same shape to the last multiplication.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'optimum-quanto==0.2.7' 'thop==0.1.1.post2209072238' 'ptflops==0.7.5' 'timm==1.0.31' \
    'torch==2.14.1' 'torchvision==0.29.1' 'numpy==2.4.6' 'setuptools<81'
cat > "$folder/finding.py" <<'PY'
import copy
import importlib.metadata
import warnings

warnings.simplefilter("ignore")
import timm
import torch
from optimum.quanto import freeze, qint8, quantize
from ptflops import get_model_complexity_info
from thop import profile

print({name: importlib.metadata.version(name) for name in ("optimum-quanto", "thop", "ptflops", "timm", "torch")})
torch.manual_seed(0)
images = torch.randn(2, 3, 224, 224)


@torch.no_grad()
def error_of_quanto(name):
    """Change of the logits by int8 weights, as a share of their size."""
    network = timm.create_model(name).eval()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:  # statistics that fit, as after training
        norm.momentum = None
        norm.reset_running_stats()
        norm.train()
    network(images)
    network.eval()
    expected = network(images)
    quantize(network, weights=qint8)
    freeze(network)
    return float((network(images) - expected).norm() / expected.norm())


def counts(name):
    network = timm.create_model(name).eval()
    counters = [profile(copy.deepcopy(network), (images[:1],), verbose=False)[0]]
    for backend in ("pytorch", "aten"):
        counted = get_model_complexity_info(
            copy.deepcopy(network), (3, 224, 224), as_strings=False, print_per_layer_stat=False, backend=backend
        )
        counters.append(counted[0])
    return [count / 1e9 for count in counters]


errors = {name: error_of_quanto(name) for name in ("resnet18", "resnetv2_50x1_bit", "tf_efficientnet_b0")}
for name, error in errors.items():
    print(f"quanto, int8 weights of {name:18}: error {error:.3f} of the logits")
assert errors["resnet18"] < 0.05 and errors["resnetv2_50x1_bit"] > 0.5 and errors["tf_efficientnet_b0"] > 0.5
results = {name: counts(name) for name in ("resnetv2_50", "resnetv2_50x1_bit")}
for name, (thop, pytorch, aten) in results.items():
    print(f"{name:18}: thop {thop:.3f}, ptflops (pytorch) {pytorch:.3f}, ptflops (aten) {aten:.3f} billion multiplications")
assert all(4.0 < count < 4.2 for count in results["resnetv2_50"])
assert results["resnetv2_50x1_bit"][0] < 0.01 and results["resnetv2_50x1_bit"][1] < 0.05
assert 4.0 < results["resnetv2_50x1_bit"][2] < 4.2
PY
"$folder/venv/bin/python" "$folder/finding.py"
