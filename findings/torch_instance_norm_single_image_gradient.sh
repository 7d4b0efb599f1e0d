#!/usr/bin/env bash
# torch 2.14.1, CPU: the gradient of instance_norm is wrong for a batch of one image if the gradient of its output arrives channels_last.
#
# Behaviour. `torch.nn.functional.instance_norm` of one image (1, C, H, W), float32: if the gradient that comes back lies in the memory
# format channels_last, the gradient of the input is another one than with the same numbers in the default format, in size as large as
# the gradient itself, and without a message. It happens whether the image itself is channels_last or not. Batches of two images are
# right. Where a backward pass hands on such a gradient, an attack image by image follows wrong directions, and the network looks
# robust.
#
# Why a good guess is wrong. A memory format is documented to change speed and never results, and a batch of two images is right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'torch==2.14.1' 'numpy==2.4.6'
cat > "$folder/finding.py" <<'PY'
import torch
import torch.nn.functional as F

print("torch", torch.__version__)
torch.manual_seed(0)


def gradient(images, output_gradient):
    images = images.clone().requires_grad_()
    F.instance_norm(images).backward(output_gradient)
    return images.grad


errors = {}
for count in (1, 2):
    images, incoming = torch.rand(count, 8, 6, 7), torch.rand(count, 8, 6, 7)
    exact = gradient(images.double(), incoming.double())
    for name, memory_format in (("default", torch.contiguous_format), ("channels_last", torch.channels_last)):
        found = gradient(images, incoming.contiguous(memory_format=memory_format)).double()
        errors[count, name] = float((found - exact).abs().max() / exact.abs().max())
        print(f"{count} image(s), incoming gradient {name:13}: largest error {errors[count, name]:.1e} of the largest gradient")
assert errors[1, "channels_last"] > 0.1
assert all(error < 1e-4 for key, error in errors.items() if key != (1, "channels_last"))
PY
"$folder/venv/bin/python" "$folder/finding.py"
