#!/usr/bin/env bash
# accelerate 1.15.0: `load_checkpoint_and_dispatch` takes a checkpoint as a pathlib.Path by its signature, and fails on the Path of a file.
#
# Behaviour. `load_checkpoint_and_dispatch(model, checkpoint, device_map)` and `load_checkpoint_in_model` are annotated and documented
# with `checkpoint (str or os.PathLike)`. The Path of a folder works, the same file as text works, the Path of the file is an
# AttributeError: 'PosixPath' object has no attribute 'endswith'. It comes after the model was put in order for the device map.
#
# Why a good guess is wrong. The documentation names os.PathLike, and the function tests `os.path.isfile(checkpoint)` on it first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'accelerate==1.15.0' 'torch==2.14.1' 'safetensors==0.8.0' 'numpy==2.4.6'
cat > "$folder/finding.py" <<'PY'
import sys
from pathlib import Path

import accelerate
import torch
from safetensors.torch import save_file
from torch import nn

print("accelerate", accelerate.__version__, "torch", torch.__version__)
folder = Path(sys.argv[1])
folder.mkdir()
save_file(nn.Linear(2, 2).state_dict(), folder / "model.safetensors")


def attempt(checkpoint):
    try:
        accelerate.load_checkpoint_and_dispatch(nn.Linear(2, 2), checkpoint, {"": "cpu"})
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "loaded"


results = {
    "file as text": attempt(str(folder / "model.safetensors")),
    "folder as a Path": attempt(folder),
    "file as a Path": attempt(folder / "model.safetensors"),
}
for name, result in results.items():
    print(f"{name:17}: {result}")
assert [result.partition(":")[0] for result in results.values()] == ["loaded", "loaded", "AttributeError"]
PY
"$folder/venv/bin/python" "$folder/finding.py" "$folder/checkpoint"
