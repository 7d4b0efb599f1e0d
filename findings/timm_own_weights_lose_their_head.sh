#!/usr/bin/env bash
# timm 1.0.31: weights of one's own, given through `pretrained_cfg_overlay=dict(file=...)`, arrive without their classifier,
# and Python code is not told.
#
# Behaviour. A resnet18 with 10 classes is saved whole. `create_model("resnet18", num_classes=10, pretrained=True,
# pretrained_cfg_overlay=dict(file=FILE))` loads every layer but `fc`, which stays random: no exception and no Python warning,
# only a line at the level INFO of the logger "timm.models._builder", which nobody sees by default. With `num_classes=10` inside
# the overlay, or with `checkpoint_path=FILE` in its place, the whole file arrives.
#
# Why a good guess is wrong. The file fits the model in every key and shape, and `file` is the documented way to weights of
# one's own, so one expects all of them or an error. timm compares the `num_classes` asked for not with the file but with the
# `num_classes` of the pretrained configuration, which the overlay inherits from the published weights (1,000), and drops the classifier
# of the file where the two differ.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'timm==1.0.31' 'torch==2.14.1' 'torchvision==0.29.1' 'safetensors==0.8.0'
cat > "$folder/finding.py" <<'PY'
import sys
import warnings

import timm
import torch
from safetensors.torch import save_file

print("timm", timm.__version__, "torch", torch.__version__)
path = sys.argv[1]
trained = timm.create_model("resnet18", num_classes=10)
save_file(trained.state_dict(), path)


def arrives(**options):
    """Whether the stem and the classifier of a new network are those of the file, and how many warnings came."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = timm.create_model("resnet18", num_classes=10, **options)
    stem = torch.equal(network.conv1.weight, trained.conv1.weight)
    return stem, torch.equal(network.fc.weight, trained.fc.weight), len(caught)


routes = {
    "overlay with file": dict(pretrained=True, pretrained_cfg_overlay=dict(file=path)),
    "overlay with file and num_classes": dict(pretrained=True, pretrained_cfg_overlay=dict(file=path, num_classes=10)),
    "checkpoint_path": dict(checkpoint_path=path),
}
results = {name: arrives(**options) for name, options in routes.items()}
for name, (stem, head, count) in results.items():
    print(f"{name:35} stem of the file: {stem}, classifier of the file: {head}, warnings: {count}")
assert results["overlay with file"] == (True, False, 0)
assert results["overlay with file and num_classes"] == (True, True, 0)
assert results["checkpoint_path"] == (True, True, 0)
PY
"$folder/venv/bin/python" "$folder/finding.py" "$folder/own.safetensors"
