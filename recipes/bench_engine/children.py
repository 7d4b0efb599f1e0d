"""What has a process of its own: peak memory, which never falls within one, torch.compile, which may take too long, and
AVX2, to which PyTorch, oneDNN and the kernel are bound before they are loaded.

Each process gets what to measure and its options as JSON, and prints JSON as its last line.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcn_plugin.engine import compact
from dcn_plugin.engine.bench import alternate, inference, measure_speed
from dcn_plugin.engine.dense_twin import dense_twin
from dcn_plugin.engine.native import MOST_LANES, lanes
from dcn_plugin.surgery import defect_spec
from recipes.bench_engine.cases import bottom_of, layer, network, noise

__all__ = ["on_avx2", "peak_memory", "with_compiled"]

ROOT = Path(__file__).parents[2]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", MOST_LANES: "8"}
"""Environment in which PyTorch, oneDNN, MKL and the engine use no wider vectors."""

Options = Mapping[str, Any]
"""name, p, batch, rounds, seed, threads, and ``make``: options of the network."""


def peak_memory(options: Options, *, limit_s: float = 120) -> dict[str, Any]:
    """MiB resident in a process with the dense or the compact network: while it is made, and while it runs."""
    return {side: _child("memory", side, options, limit_s) for side in ("dense", "compact")}


def with_compiled(options: Options, *, limit_s: float) -> dict[str, Any]:
    """The compact network beside the dense one as it is and after torch.compile, all in one run."""
    return {what: _child("compiled", what, options, limit_s) for what in ("bottom", "whole")}


def on_avx2(options: Options, *, limit_s: float = 600) -> dict[str, Any]:
    """A layer and the whole network, dense and compact, both bound to AVX2."""
    if lanes() < 8:
        return {"reason": "the processor has no AVX2"}
    return {what: _child("avx2", what, options, limit_s, AVX2) for what in ("layer", "whole")}


def _child(
    task: str, what: str, options: Options, limit_s: float, variables: Mapping[str, str] | None = None
) -> dict[str, Any]:
    command = [sys.executable, "-m", "recipes.bench_engine.children", task, what, json.dumps(dict(options))]
    with tempfile.TemporaryDirectory() as cache:
        # Nothing that was compiled before is found again, and nothing is left behind.
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "DCN_ENGINE_CACHE": "off", **(variables or {})}
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                out, err = "", f"it was not finished after {limit_s:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # the compiler's own processes with it
    if process.returncode == 0 and out.strip():
        found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return found
    return {"reason": (err.strip().splitlines() or [f"exit status {process.returncode}"])[-1][:300]}


def _memory(side: str, options: Options) -> dict[str, Any]:
    if not CLEAR.exists():
        return {"reason": "the peak of a process can be reset on Linux only"}
    model = network(options["name"], p=options["p"], seed=options["seed"], **options["make"])
    images = noise(options["batch"], *defect_spec(model).input_size, seed=options["seed"])
    found = {"before": _resident("VmRSS")}

    made, found["making"] = _peak(partial(_made, side, model, options["batch"]))
    # The model that it was made from is no longer needed, as in a program that only infers.
    del model
    gc.collect()
    call = inference(made, images)
    found["running"] = _peak(lambda: (call(), call()))[1]
    return found


def _made(side: str, model: nn.Module, batch: int) -> nn.Module:
    return compact(model, batch_size=batch) if side == "compact" else dense_twin(model).module


def _peak(call: Callable[[], Any]) -> tuple[Any, float]:
    CLEAR.write_text("5")  # from here on the kernel counts anew
    made = call()
    return made, _resident("VmHWM")


def _resident(name: str) -> float:
    """MiB: "VmRSS" now, "VmHWM" at most since the last reset."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def _compiled(what: str, options: Options) -> dict[str, Any]:
    model: nn.Module = network(options["name"], p=options["p"], seed=options["seed"], **options["make"])
    model = bottom_of(model) if what == "bottom" else model
    images = noise(options["batch"], *defect_spec(model).input_size, seed=options["seed"])
    twin = dense_twin(model).module
    compiled = torch.compile(twin)
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            compiled(images)
    except Exception as error:  # whatever the compiler's own parts raise where one of them is missing
        return {"reason": f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:200]}"}
    seconds = time.perf_counter() - start
    fast = compact(model, batch_size=options["batch"])
    nets = {"compiled": compiled, "dense": twin, "compact": fast}
    timed = alternate({name: inference(net, images) for name, net in nets.items()}, rounds=options["rounds"])
    return {
        "compile_s": seconds,
        "ms": {name: one.median_ms for name, one in timed.items()},
        "speedup": timed["compact"].speedup,
        "quartiles": list(timed["compact"].quartiles),
        "compiled_over_dense": 1 / timed["dense"].speedup,
    }


def _avx2(what: str, options: Options) -> dict[str, Any]:
    timing = {"rounds": options["rounds"], "seed": options["seed"]}
    if what == "layer":
        speed = layer(options["p"], batch=options["batch"], **timing)
    else:
        model = network(options["name"], p=options["p"], seed=options["seed"], **options["make"])
        speed = measure_speed(model, batch_size=options["batch"], **timing).to_json()
    return {**speed, "capability": torch.backends.cpu.get_cpu_capability(), "lanes": lanes()}


def main() -> None:
    task, what, text = sys.argv[1:]
    options = json.loads(text)
    torch.set_num_threads(options["threads"])
    print(json.dumps({"memory": _memory, "compiled": _compiled, "avx2": _avx2}[task](what, options)))


if __name__ == "__main__":
    main()
