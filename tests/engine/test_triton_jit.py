"""The kernels themselves: against the dense convolution where Triton interprets them, and through its compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dcn_plugin.engine import triton_kernels
from tests.engine.cases import needs_triton

pytestmark = needs_triton
CASES = Path(__file__).with_name("triton_cases.py")
ROOT = CASES.parents[2]


@pytest.mark.timeout(300)  # on a GPU each variant of a kernel is compiled first
@pytest.mark.parametrize(
    "interpret",
    [pytest.param(True, marks=pytest.mark.slow), pytest.param(False, marks=pytest.mark.gpu)],
    ids=["interpreted", "gpu"],
)
def test_the_kernels_compute_what_the_dense_convolution_does(interpret: bool) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpret else "0"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 50


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", ["product", "weighted_sum"])
def test_the_kernels_compile_for_gpus(
    kernel: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The interpreter does not check types, so the compiler has to; it needs no GPU.
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compiled

    from dcn_plugin.engine import triton_jit

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = {"RESIDUAL": True, "RELU": True, "OUTPUTS": 32, "IMAGES": 64}
    if kernel == "product":
        constants |= {"READS": triton_kernels.READS, "PRECISION": triton_kernels.PRECISION}
    function = getattr(triton_jit, kernel)
    kinds = dict.fromkeys(("x", "weights", "residual", "out", "bias"), "*fp32") | {"batch": "i32", "writes": "i32"}
    signature = {name: kinds.get(name, "constexpr" if name in constants else "*i32") for name in function.arg_names}
    source = ASTSource(function, signature, constants)
    made = compiled(source, target=GPUTarget("cuda", capability, 32))
    assert f".target sm_{capability}" in made.asm["ptx"]
    assert ("fma.rn.f32" in made.asm["ptx"]) and "tf32" not in made.asm["ptx"]
