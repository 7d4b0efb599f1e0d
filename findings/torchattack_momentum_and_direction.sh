#!/usr/bin/env bash
# torchattack 1.7.2: NI-, SI-NI- and TI-FGSM lose their momentum, and MIG, untargeted, makes a network more accurate.
#
# Behaviour. (1) In NIFGSM and SINIFGSM the momentum is `decay * gradient + gradient / mean|gradient|`, in TIFGSM the smoothed gradient
# takes the place of the momentum before it is added to itself: no gradient but the last one ever counts, so that `decay` changes
# nothing of TI-FGSM's steps (decay 0 and decay 1 give the same images), and that of NI-FGSM depends on the number of images in the
# batch, because its loss is a mean. (2) MIG climbs the probability of the true class; only `targeted=True` turns the sign, which is
# the untargeted attack of the paper. With the default the loss falls on all images.
#
# Why a good guess is wrong. The attacks are named after papers whose point is the momentum (and MIG after integrated gradients of
# it), run without a message, stay in their ball, and NI- and TI-FGSM do fool the network that they are made on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'torchattack==1.7.2' 'scipy==1.17.1' 'torch==2.14.1' 'torchvision==0.29.1' 'numpy==2.4.6'
cat > "$folder/finding.py" <<'PY'
import torch
import torch.nn.functional as F
import torchattack
from torch import nn

print("torchattack", torchattack.__version__, "torch", torch.__version__)
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)).eval()
for parameter in network.parameters():
    parameter.data.mul_(3).requires_grad_(False)
images = torch.rand(16, 3, 16, 16)
labels = network(images).argmax(1)


def run(name, images=images, labels=labels, **options):
    options = {"eps": 0.1, "steps": 10} | options
    return torchattack.create_attack(name, network, None, torch.device("cpu"), **options)(images, labels).detach()


for name in ("MIFGSM", "TIFGSM"):
    same = torch.equal(run(name, decay=0.0), run(name, decay=1.0))
    print(f"{name}: decay 0 and decay 1 give the same images: {same}")
    assert same is (name == "TIFGSM")
for name in ("MIFGSM", "NIFGSM", "SINIFGSM"):
    alone = torch.cat([run(name, images[i : i + 1], labels[i : i + 1]) for i in range(16)])
    differ = int((alone != run(name)).flatten(1).any(1).sum())
    print(f"{name}: {differ} of 16 images depend on how many are in the batch")
    assert (differ > 0) is (name != "MIFGSM")
before, after = (F.cross_entropy(network(x), labels, reduction="none").detach() for x in (images, run("MIG")))
print(f"MIG: mean loss {float(before.mean()):.3f} before, {float(after.mean()):.3f} after")
assert bool((after < before).all())
PY
"$folder/venv/bin/python" "$folder/finding.py"
