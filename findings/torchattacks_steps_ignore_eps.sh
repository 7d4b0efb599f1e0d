#!/usr/bin/env bash
# torchattacks 3.5.1: the step of the iterative attacks does not follow eps, so that a larger eps changes nothing.
#
# Behaviour. BIM, MIFGSM, DIFGSM, TIFGSM and NIFGSM take `eps` and a step `alpha` whose default is a constant (2/255). With the
# default of 10 steps no pixel can move by more than 20/255 = 0.078, whatever eps is: eps = 0.1, 0.2 and 0.4 give the same images,
# bit for bit, and no message. A table over eps made this way shows a network that stops getting worse.
#
# Why a good guess is wrong. In the papers the step is eps divided by the number of steps (MI-FGSM, Dong et al. 2018), and in
# Foolbox it is a share of eps (`rel_stepsize`), so one expects an attack that is given eps alone to be able to use it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'torchattacks==3.5.1' 'torch==2.14.1' 'torchvision==0.29.1' 'numpy==2.4.6'
cat > "$folder/finding.py" <<'PY'
import torch
import torchattacks
from torch import nn

print("torchattacks", torchattacks.__version__, "torch", torch.__version__)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
network = network.eval()
images = torch.rand(8, 3, 32, 32) * 0.2 + 0.4  # far from 0 and 1: no pixel is stopped by the range
labels = network(images).argmax(1)
for name in ("BIM", "MIFGSM", "NIFGSM", "DIFGSM", "TIFGSM"):
    results = {}
    for eps in (0.1, 0.2, 0.4):
        torch.manual_seed(1)
        results[eps] = getattr(torchattacks, name)(network, eps=eps)(images, labels)
        print(f"{name:7} eps {eps}: largest change {float((results[eps] - images).abs().max()):.4f}")
        assert float((results[eps] - images).abs().max()) < 20 / 255 + 1e-6
    assert torch.equal(results[0.1], results[0.4]), name
PY
"$folder/venv/bin/python" "$folder/finding.py"
