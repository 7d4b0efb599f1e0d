"""`import dcn_plugin` is light: no attack framework, no CUDA, no random state."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

HEAVY = ("accelerate", "art", "matplotlib", "onnx", "sklearn", "torchattacks")

# torch is imported first, so that only what the statement itself does is seen. On a machine without CUDA
# `is_initialized` is always False; the trap on `_lazy_init` sees the attempt there too.
PROBE = """
import json, random, sys
import numpy, torch

cuda_calls = []
torch.cuda._lazy_init = lambda: cuda_calls.append(1)
before = torch.get_rng_state(), random.getstate(), repr(numpy.random.get_state())
{statement}
after = torch.get_rng_state(), random.getstate(), repr(numpy.random.get_state())
print(json.dumps({{
    "heavy": [name for name in {heavy!r} if name in sys.modules],
    "cuda_initialised": torch.cuda.is_initialized(),
    "cuda_calls": len(cuda_calls),
    "rng_untouched": torch.equal(before[0], after[0]) and before[1:] == after[1:],
}}))
"""


def probe(statement: str) -> dict[str, Any]:
    """Run a statement in a fresh process and report what it did to that process."""
    code = PROBE.format(statement=statement, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


def test_importing_the_package_loads_no_framework_and_touches_no_device_or_random_state() -> None:
    assert probe("import dcn_plugin; assert dcn_plugin.__file__, 'no __init__.py'") == {
        "heavy": [],
        "cuda_initialised": False,
        "cuda_calls": 0,
        "rng_untouched": True,
    }


@pytest.mark.parametrize(
    ("statement", "field", "value"),
    [
        ("import sklearn", "heavy", ["sklearn"]),
        ("torch.cuda._lazy_init()", "cuda_calls", 1),
        ("torch.rand(1)", "rng_untouched", False),
        ("random.random()", "rng_untouched", False),
        ("numpy.random.rand()", "rng_untouched", False),
    ],
)
def test_the_probe_sees_what_it_looks_for(statement: str, field: str, value: object) -> None:
    assert probe(statement)[field] == value
