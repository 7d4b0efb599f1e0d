"""What masks cost in the runtimes that networks are exported to, and in PyTorch itself.

Run it on an idle machine, with OpenVINO installed: ``python -m recipes.bench_export.bench``. It writes ``record.json``
and ``README.md`` beside itself. Three forms of each network run in turns in one process, on one thread: without masks,
the defective network as it is (as ``torch.onnx`` exports it), and as ``for_export`` prepares it. Each ratio is one of
medians of process time, which other programs disturb less than time on the wall.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from torch import nn

import dcn_plugin as dcn
from dcn_plugin.engine.clock import alone
from recipes.benchmark import head, main

HERE = Path(__file__).parent
FORMS = ("plain", "as it is", "for_export")
NETWORKS = ("resnet18", "mobilenetv2_100", "efficientnet_b0")

Run = Callable[[], Any]


def aim(network: str, runtime: str) -> float:
    """What a defective network shall cost at most, over the network without masks."""
    if network == "resnet18":
        return 1.03
    return 1.08 if runtime == "torch" else 1.10


@dataclass(frozen=True)
class Options:
    networks: tuple[str, ...] = NETWORKS
    size: int = 224
    p: float = 0.3
    turns: int = 100
    runs: int = 4
    """Runs that count in a turn, behind one that brings the network into the cache."""
    seed: int = 0


QUICK = Options(networks=("resnet18",), size=64, turns=2, runs=1)


def write(model: nn.Module, path: Path, size: int) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(1, 3, size, size),), str(path), dynamo=True, verbose=False)
    return path


@dataclass(frozen=True)
class Form:
    """A network, and the file that it was exported to."""

    model: nn.Module
    file: Path


def forms(name: str, options: Options, folder: Path) -> dict[str, Form]:
    torch.manual_seed(options.seed)
    net = timm.create_model(f"defective_{name}", p=options.p, img_size=options.size).eval()
    models = {"plain": dcn.undefectify(copy.deepcopy(net)).eval(), "as it is": net, "for_export": dcn.for_export(net)}
    return {
        form: Form(models[form], write(models[form], folder / f"{name}_{number}.onnx", options.size))
        for number, form in enumerate(FORMS)
    }


def in_torch(form: Form, images: np.ndarray) -> Run:
    model = form.model.to(memory_format=torch.channels_last)
    given = torch.from_numpy(images).to(memory_format=torch.channels_last)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return model(given).numpy()

    return run


def in_onnxruntime(form: Form, images: np.ndarray) -> Run:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(form.file, settings, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: images})[0]


def in_openvino(form: Form, images: np.ndarray) -> Run:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(form.file, "CPU", settings).create_infer_request()
    return lambda: request.infer([images])[0]


RUNTIMES: dict[str, Callable[[Form, np.ndarray], Run]] = {
    "onnxruntime": in_onnxruntime,
    "openvino": in_openvino,
    "torch": in_torch,
}


def race(runs: dict[str, Run], options: Options) -> dict[str, float]:
    """Median milliseconds of process time of each, in turns whose order changes."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.turns):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            runs[name]()
            for _ in range(options.runs):
                start = time.process_time()
                runs[name]()
                times[name].append(time.process_time() - start)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def measure(options: Options, command: str) -> dict[str, Any]:
    images = np.random.default_rng(options.seed).random((1, 3, options.size, options.size), dtype=np.float32)
    results = []
    with tempfile.TemporaryDirectory() as folder, alone():
        for name in options.networks:
            prepared = forms(name, options, Path(folder))
            for runtime, prepare in RUNTIMES.items():
                runs = {kind: prepare(form, images) for kind, form in prepared.items()}
                masked, ours = runs["as it is"](), runs["for_export"]()
                difference = float(np.abs(masked - ours).max() / np.abs(masked).max())
                assert difference < 1e-4, (name, runtime, difference)
                ms = race(runs, options)
                ratios = {form: ms[form] / ms["plain"] for form in FORMS[1:]}
                results.append(
                    {"network": name, "runtime": runtime, "ms": ms, "ratios": ratios, "difference": difference}
                )
    return {**head(options, command, packages=("onnxruntime", "openvino")), "results": results}


_IN_TORCH = (
    "In torch all three run in channels_last memory format, and batch norms are folded by `for_export` alone; the "
    "other runtimes fold them in all three."
)


def page(record: dict[str, Any]) -> str:
    options, versions, hardware = record["options"], record["versions"], record["hardware"]
    instructions = hardware.get("instructions", "instructions not noted")
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "timm", "onnxruntime", "openvino"))
    rows = []
    for result in record["results"]:
        ratios = " | ".join(f"{result['ratios'][form]:.2f}" for form in FORMS[1:])
        place = f"{result['network']} | {result['runtime']}"
        at_most = aim(result["network"], result["runtime"])
        rows.append(f"| {place} | {result['ms']['plain']:.2f} | {ratios} | {at_most:.2f} |")
    return "\n".join(
        [
            "# What masks cost in runtimes",
            "",
            f"Made by `{record['command']}` (seed {options['seed']}); all figures are in `record.json`. Images of "
            f"{options['size']} pixels, batch 1, one thread, float32, p = {options['p']:g} at the bottom. "
            "Ratios are to the network without masks.",
            *(["", _IN_TORCH] if any(result["runtime"] == "torch" for result in record["results"]) else []),
            "",
            f"Machine: {hardware['processor']} ({instructions}), {hardware['cores']} cores; {named}.",
            "",
            "| network | runtime | plain, ms | as it is | `for_export` | aim |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main(HERE, __doc__, options=Options(), quick=QUICK, settable=("turns", "runs", "seed"), measure=measure, page=page)
