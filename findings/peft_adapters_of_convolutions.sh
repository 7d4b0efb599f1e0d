#!/usr/bin/env bash
# peft 0.21.2: adapters of convolutions that change the network although they are new, and that merge into another network.
#
# Behaviour. A new adapter stands for no change: OFT turns by the identity, and the product of HRA and BOFT is one. In the place of a
# convolution it changes the network all the same in two cases, without a message. (1) OFT around a kernel above 1x1: the input is
# cut into patches and put together again with `fold`, which adds up what overlaps, so that with a 3x3 kernel an inner pixel comes
# out nine times as large. `merge_and_unload` of the new adapter gives the original network back, which is not the one that was
# trained. (2) Every padding_mode but "zeros": HRA and BOFT pad with zeros. LoRA, LoHa and LoKr are no change when new, but
# add a convolution with zero padding, and merge into a weight whose convolution pads as the layer says: another network.
#
# Why a good guess is wrong. For a Linear layer, a 1x1 kernel and zero padding all of these hold to rounding, and "merge_and_unload"
# is documented to give a model that can be used as the one before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'peft==0.21.2' 'torch==2.14.1' 'transformers==5.24.0' 'accelerate==1.15.0' 'numpy==2.4.6'
cat > "$folder/finding.py" <<'PY'
import copy
import warnings

import peft
import torch
from torch import nn

warnings.simplefilter("ignore")
print("peft", peft.__version__, "torch", torch.__version__)
torch.manual_seed(0)
images = torch.randn(4, 8, 12, 12)
ROUNDING = 1e-5


def network(**options):
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(8, 8, **options), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)).eval()


def measure(config, **options):
    """Change by a new adapter, and by merging one with random weights, as shares of the size of the output."""
    net = network(**options)
    expected = net(images).detach()
    torch.manual_seed(2)
    adapted = peft.get_peft_model(copy.deepcopy(net), config).eval()
    new = adapted(images).detach()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    trained = adapted(images).detach()
    merged = adapted.merge_and_unload()(images).detach()
    return [float((a - b).norm() / expected.norm()) for a, b in ((new, expected), (merged, trained))]


KERNELS = {
    "3x3": dict(kernel_size=3, padding=1),
    "1x1": dict(kernel_size=1),
    "3x3 circular": dict(kernel_size=3, padding=1, padding_mode="circular"),
}
CONFIGS = {
    "OFT": lambda: peft.OFTConfig(target_modules=["0"], oft_block_size=8, r=0),
    "BOFT": lambda: peft.BOFTConfig(target_modules=["0"], boft_block_size=8),
    "HRA": lambda: peft.HRAConfig(target_modules=["0"]),
    "LoRA": lambda: peft.LoraConfig(target_modules=["0"]),
    "LoHa": lambda: peft.LoHaConfig(target_modules=["0"]),
    "LoKr": lambda: peft.LoKrConfig(target_modules=["0"]),
}
results = {}
for name, config in CONFIGS.items():
    for kernel, options in KERNELS.items():
        new, merged = results[name, kernel] = measure(config(), **options)
        print(f"{name:5} {kernel:13} change by a new adapter {new:.6f}, by merging {merged:.6f}")
for name in CONFIGS:
    assert max(results[name, "1x1"]) < ROUNDING, name
    assert name == "OFT" or max(results[name, "3x3"]) < ROUNDING, name
    assert results[name, "3x3 circular"][1] > 1e-3, name
for name in ("OFT", "BOFT", "HRA"):
    assert results[name, "3x3 circular"][0] > 1e-3, name
assert min(results["OFT", "3x3"]) > 0.1
PY
"$folder/venv/bin/python" "$folder/finding.py"
