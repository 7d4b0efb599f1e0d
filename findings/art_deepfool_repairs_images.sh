#!/usr/bin/env bash
# Adversarial Robustness Toolbox 1.20.1: untargeted DeepFool ignores the labels that it is given, and turns wrong answers into right ones.
#
# Behaviour. `DeepFool.generate(x, y)` moves every image away from the class that the network predicts, not from `y`. An image that
# is misclassified when clean can so arrive at its true class: here the accuracy on such images rises from 0 % to about a half by
# being attacked, with `y` given or not, and the two runs are equal. "Accuracy under attack" over all images then counts them as defended.
#
# Why a good guess is wrong. `generate` documents `y` for attacks in general, ProjectedGradientDescent in the same library honours it
# (0 % stays 0 %), and an attack is expected never to raise the accuracy on the images that it is given. Count only images that are right
# when clean. (ART 1.20.1 imports `packaging` without declaring it, hence its pin below.)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'adversarial-robustness-toolbox==1.20.1' 'torch==2.14.1' 'numpy==2.4.6' 'scipy==1.17.1' 'scikit-learn==1.9.1' 'packaging==26.4'
cat > "$folder/finding.py" <<'PY'
import art
import numpy as np
import torch
from art.attacks.evasion import DeepFool, ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import nn

print("adversarial-robustness-toolbox", art.__version__, "torch", torch.__version__, "numpy", np.__version__)
torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 3, clip_values=(0, 1))
images = np.random.default_rng(0).random((60, 1, 8, 8)).astype(np.float32)
# Labels that the network does not give: every image is misclassified when clean.
labels = (classifier.predict(images).argmax(1) + 1) % 3


def accuracy(adversarial):
    return float((classifier.predict(adversarial).argmax(1) == labels).mean())


deepfool = DeepFool(classifier, verbose=False)
with_labels, without = deepfool.generate(images, y=labels), deepfool.generate(images)
pgd = ProjectedGradientDescent(classifier, eps=0.3, eps_step=0.05, max_iter=20, verbose=False)
figures = {
    "clean": accuracy(images),
    "DeepFool, labels given": accuracy(with_labels),
    "DeepFool, no labels": accuracy(without),
    "PGD, labels given": accuracy(pgd.generate(images, y=labels)),
}
for name, value in figures.items():
    print(f"{name:25} accuracy {value:.1%}")
assert np.array_equal(with_labels, without)
assert figures["clean"] == 0 and figures["PGD, labels given"] == 0
assert figures["DeepFool, labels given"] > 0.3
PY
"$folder/venv/bin/python" -W ignore "$folder/finding.py"
