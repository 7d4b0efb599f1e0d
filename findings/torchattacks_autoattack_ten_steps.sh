#!/usr/bin/env bash
# torchattacks 3.5.1: its AutoAttack runs APGD-CE, APGD-T and FAB with 10 steps; the published attack takes 100.
#
# Behaviour. `AutoAttack(net, version="standard")` builds its parts with their own defaults: APGD 10 steps, APGDT 10, FAB 10, Square
# 5,000 queries. There is no argument `steps` to change that, and no message.
#
# Why a good guess is wrong. AutoAttack is a standard so that numbers of different papers can be compared: the paper (Croce and Hein
# 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks") and the authors' code take
# 100 steps, with 5,000 queries for Square as here. Whoever writes "AutoAttack accuracy" from this class reports a tenth of the steps
# against a full Square.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'torchattacks==3.5.1' 'torch==2.14.1' 'torchvision==0.29.1' 'numpy==2.4.6'
cat > "$folder/finding.py" <<'PY'
import inspect

import torch
import torchattacks

print("torchattacks", torchattacks.__version__, "torch", torch.__version__)
print("signature:", inspect.signature(torchattacks.AutoAttack.__init__))
network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10))
parts = torchattacks.AutoAttack(network, version="standard")._autoattack.attacks
found = [(type(part).__name__, getattr(part, "steps", None) or part.n_queries) for part in parts]
for name, count in found:
    print(f"{name:7} {count} {'queries' if name == 'Square' else 'steps'}")
assert found == [("APGD", 10), ("APGDT", 10), ("FAB", 10), ("Square", 5000)]
assert "steps" not in inspect.signature(torchattacks.AutoAttack.__init__).parameters
PY
"$folder/venv/bin/python" "$folder/finding.py"
