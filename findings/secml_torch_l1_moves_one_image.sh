#!/usr/bin/env bash
# SecML-Torch 1.5: its own PGD in L1 moves one image of a batch in a step; the others come back clean and look robust.
#
# Behaviour. `PGD(perturbation_model=LpPerturbationModels.L1, backend=Backends.NATIVE)` on a batch of eight images changes one of them.
# Given one image at a time, the same attack changes all eight. `lin_proj_l1` of `secmlt.optimization.gradient_processing` takes
# the largest absolute gradient of the whole batch, `w == w.max()`, where it means that of each image; only the image that has it gets a
# step. L-inf and L2 treat each image by itself.
#
# Why a good guess is wrong. An attack that is handed a DataLoader is expected to attack every image in it, whatever the batch size. The
# result here reports seven of eight images as robust, without a message, and the more so the larger the batch: the accuracy under attack
# of a batch of 256 is nearly the clean one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'secml-torch==1.5' 'torch==2.14.1' 'torchvision==0.29.1' 'numpy==2.4.6'
cat > "$folder/finding.py" <<'PY'
from importlib.metadata import version

import torch
from secmlt.adv.backends import Backends
from secmlt.adv.evasion.perturbation_models import LpPerturbationModels
from secmlt.adv.evasion.pgd import PGD
from torch.utils.data import DataLoader, TensorDataset

print("secml-torch", version("secml-torch"), "torch", torch.__version__)
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
images = torch.rand(8, 1, 4, 4) / 2 + 0.25
labels = network(images).argmax(1)


def moved(norm: str, batch_size: int) -> int:
    """How many of the eight images a few steps change."""
    attack = PGD(
        perturbation_model=norm, epsilon=0.2, num_steps=5, step_size=0.05, random_start=False, backend=Backends.NATIVE
    )
    data = DataLoader(TensorDataset(images, labels), batch_size=batch_size)
    adversarial = torch.cat([batch for batch, _ in attack(network, data)])
    return int(((adversarial - images).abs().flatten(1).amax(1) > 0).sum())


for norm in (LpPerturbationModels.LINF, LpPerturbationModels.L2, LpPerturbationModels.L1):
    print(f"{norm:5} images moved: {moved(norm, 8)} of 8 in one batch, {moved(norm, 1)} of 8 one at a time")
assert moved(LpPerturbationModels.LINF, 8) == moved(LpPerturbationModels.L2, 8) == 8
assert moved(LpPerturbationModels.L1, 1) == 8
assert moved(LpPerturbationModels.L1, 8) == 1
PY
"$folder/venv/bin/python" "$folder/finding.py"
