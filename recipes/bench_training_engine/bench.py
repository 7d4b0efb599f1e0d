"""What a training step of a defective network costs over one of the same network without masks.

Run it on an idle machine: ``.venv/bin/python -m recipes.bench_training_engine.bench``, a quarter of an hour. It
writes ``record.json`` and ``README.md`` beside itself. ``--quick`` is a smoke test that writes only where ``--out``
says.

Each ratio comes from rounds in which the sides were timed one after the other in one run. The plain network is in
channels_last memory format, as it is and after torch.compile; the faster of the two counts.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dcn_plugin as dcn
from dcn_plugin.engine.bench import Timing, alternate, relative_error
from dcn_plugin.engine.native import native_problem
from dcn_plugin.engine.row_layout import Geometry, gather, number_rows
from dcn_plugin.engine.training.block import Norm, RowsBlock
from dcn_plugin.models.resnet import cifar_resnet
from dcn_plugin.support.onednn import check_channels_last
from dcn_plugin.surgery import undefectify
from dcn_plugin.training import TrainConfig, isolated_rng, train
from recipes import benchmark
from recipes.bench_training.bench import Bare, Paired, synthetic

HERE = Path(__file__).parent
ROOT = Path(__file__).parents[2]
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
GEOMETRY = Geometry(padding=(1, 1))


@dataclass(frozen=True)
class Options:
    """What the figures depend on, but for the machine and the versions."""

    seed: int = 0
    threads: int = 2
    width: int = 64
    small_width: int = 16
    batch: int = 128
    layer_batch: int = 64
    layer_rounds: int = 15
    rounds: int = 7
    small_rounds: int = 15
    epoch_steps: int = 6
    epochs: int = 3
    compile: int = 1


QUICK = Options(
    width=16, small_width=16, batch=4, layer_batch=4, layer_rounds=2, rounds=2, small_rounds=2, epoch_steps=2, epochs=2,
    compile=0,
)  # fmt: skip


def layer(p: float, options: Options, channels: int = 64, size: int = 32) -> dict[str, Any]:
    """One 3x3 convolution behind a mask with both of its gradients, the input as rows already."""
    spec = dcn.MaskSpec(p, seed=options.seed)
    live = dcn.sample_mask(spec, (channels, size, size), site=0)
    index, every = number_rows(live), torch.ones_like(live)
    draw = torch.Generator().manual_seed(options.seed)
    images = torch.randn(options.layer_batch, channels, size, size, generator=draw).mul_(live)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(channels, channels, 3, 3, generator=draw) / 24
    weight = weight.contiguous(memory_format=torch.channels_last).requires_grad_()
    rows = gather(images.detach(), index, int(live.sum())).requires_grad_()
    backend = "c" if native_problem() is None else "reference"
    shape = (channels, channels, 3, 3)
    block = RowsBlock(index, number_rows(every), every, None, shape, GEOMETRY, Norm(), relu=False, backend=backend)

    grad = torch.randn(size * size * channels, options.layer_batch, generator=draw)
    images_grad = grad.view(size, size, channels, -1).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)

    def dense() -> Tensor:
        out = F.conv2d(images, weight, None, *GEOMETRY)
        return torch.autograd.grad(out, [weight, images], images_grad)[0]

    def sparse() -> Tensor:
        return torch.autograd.grad(block(rows, None, weight, *[None] * 5), [weight, rows], grad)[0]

    theirs, ours = dense(), sparse()
    timed = alternate({"dense": dense, "rows": sparse}, rounds=options.layer_rounds)
    return {
        **told(timed, "rows"),
        "relative_error": relative_error(theirs, ours),
        "ideal": 1 / float(live.float().mean()),
    }


def told(timed: dict[str, Timing], side: str) -> dict[str, Any]:
    """Milliseconds of all sides, and how many times faster than the first this one is."""
    milliseconds = {name: timing.median_ms for name, timing in timed.items()}
    return {"ms": milliseconds, "speedup": timed[side].speedup, "quartiles": list(timed[side].quartiles)}


def network(p: float, width: int, seed: int) -> nn.Module:
    """A defective ResNet-18 for CIFAR in training mode; the paper masks its bottom blocks."""
    with isolated_rng(seed):
        plain = cifar_resnet(width=width)
    model = dcn.defectify(plain, p=p, input_size=(3, 32, 32), seed=seed)
    check_channels_last(model, torch.device("cpu"))
    return model.train().to(memory_format=torch.channels_last)


def stepper(forward: Callable[[Tensor], Tensor], model: nn.Module, options: Options) -> Callable[[], None]:
    """A training step: forward pass, backward pass, SGD."""
    draw = torch.Generator().manual_seed(options.seed)
    images = torch.rand(options.batch, 3, 32, 32, generator=draw).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(options.batch) % 10
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def steps(p: float, width: int, options: Options, *, norm_statistics: Any = "all") -> dict[str, Any]:
    """Training steps of the plain network, of the defective one as it is, and on the neurons that exist."""
    defective = network(p, width, options.seed)
    plain = undefectify(defective).train()
    start = time.perf_counter()
    rows = copy.deepcopy(defective)
    fast = dcn.compact_training(rows, batch_size=options.batch, norm_statistics=norm_statistics)
    made = time.perf_counter() - start
    calls = {"plain": stepper(plain, plain, options), "defective": stepper(defective, defective, options)}
    calls["rows"] = stepper(fast, rows, options)
    if options.compile:
        twin = copy.deepcopy(plain)
        calls["compiled"] = stepper(torch.compile(twin), twin, options)
    rounds = options.rounds if width == options.width else options.small_rounds
    timed = alternate(calls, rounds=rounds, settle=0)
    base = "compiled" if "compiled" in timed and timed["compiled"].speedup > 1 else "plain"
    if base == "compiled":
        timed = alternate(
            {name: calls[name] for name in ("compiled", "plain", "defective", "rows")}, rounds=rounds, settle=0
        )
    return {
        **told(timed, "rows"),
        "over": base,
        "on_rows": len(fast.plan.rows),
        "rows": list(fast.plan.rows),
        "layers": len(fast.plan.layers),
        "backend": fast.backend,
        "note": fast.plan.note,
        "made_s": made,
        "defective_over_base": 1 / timed["defective"].speedup,
    }


def epoch(p: float, options: Options) -> dict[str, Any]:
    """Epochs of the training loop, loader included, beside as many bare steps of the plain network."""
    data = synthetic(options.epoch_steps * options.batch)
    defective = network(p, options.width, options.seed)
    plain = undefectify(defective).train()
    config = TrainConfig(
        epochs=options.epochs + 1,
        batch_size=options.batch,
        lr=1e-3,
        shift=4,
        flip=True,
        channels_last=True,
        engine="auto",
    )
    bare = Bare(plain, data, config, torch.device("cpu"))
    bare.images = bare.images[: options.batch].contiguous(memory_format=torch.channels_last)
    bare.labels = bare.labels[: options.batch]
    paired = Paired(data, bare, config)
    train(defective, paired, config)
    ratios = sorted(loop / plain for plain, loop in paired.rounds[1:])
    return {"ratio": ratios[len(ratios) // 2], "ratios": ratios, "steps": options.epoch_steps}


def memory(side: str, p: float, options: Options, rows: list[str]) -> dict[str, Any]:
    """MiB that a process holds before its first training step, and at most during two of them; ``rows`` as planned."""
    command = [
        sys.executable,
        "-m",
        "recipes.bench_training_engine.bench",
        "--memory",
        side,
        str(p),
        json.dumps(asdict(options)),
        *rows,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return {"reason": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure_memory(side: str, p: float, options: Options, rows: list[str]) -> dict[str, Any]:
    """What the process of :func:`memory` does."""
    if not CLEAR.exists():
        return {"reason": "the peak of a process can be reset on Linux only"}
    torch.set_num_threads(options.threads)
    defective = network(p, options.width, options.seed)
    forward: nn.Module = undefectify(defective).train() if side == "plain" else defective
    model = forward
    if side == "rows":
        forward = dcn.compact_training(model, rows=rows)
        forward(torch.zeros(2, 3, 32, 32))  # makes the graph, whose tracing is no part of a step
    step = stepper(forward, model, options)
    before = _resident("VmRSS")
    CLEAR.write_text("5")  # from here on the kernel counts anew
    step()
    step()
    return {"before": before, "peak": _resident("VmHWM"), "step": _resident("VmHWM") - before}


def _resident(name: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


@dataclass(frozen=True)
class Line:
    """A figure that has a limit.

    Args:
        what: was measured.
        value: of it.
        must: the limit.
        aim: what is hoped for.
        quartiles: of the value.
        smallest: whether the limit is a lower one.
    """

    what: str
    value: float
    must: float
    aim: float
    quartiles: tuple[float, float] | None = None
    smallest: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.must if self.smallest else self.value <= self.must


def run(options: Options, command: str) -> dict[str, Any]:
    """Measure everything."""
    begin = time.perf_counter()
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {
        **benchmark.head(options, command),
        "seed": options.seed,
        "layer": {str(p): layer(p, options) for p in (0.5, 0.3, 0.1)},
        "step": {str(p): steps(p, options.width, options) for p in (0.3, 0.1)},
        "live": steps(0.3, options.width, options, norm_statistics="live"),
        "small": steps(0.3, options.small_width, options),
        "epoch": epoch(0.3, options),
    }
    rows = record["step"]["0.3"]["rows"]
    record["memory"] = {side: memory(side, 0.3, options, rows) for side in ("plain", "defective", "rows")}
    record["seconds"] = time.perf_counter() - begin
    record["limits"] = [{**asdict(line), "holds": line.holds} for line in figures(record)]
    return record


def figures(record: dict[str, Any]) -> list[Line]:
    """Every figure that has a limit."""
    options = record["options"]
    lines = [
        Line(
            f"one 3x3 layer 64 -> 64 at 32x32, with both gradients, p = {p}, batch {options['layer_batch']}: speed-up",
            record["layer"][p]["speedup"],
            must,
            aim,
            tuple(record["layer"][p]["quartiles"]),
            smallest=True,
        )
        for p, must, aim in (("0.3", 2.6, 3.2), ("0.1", 5.5, 9))
    ]
    name = f"step of ResNet-18 CIFAR, batch {options['batch']}, width"
    wide, small = f"{name} {options['width']}", f"{name} {options['small_width']}"
    cases = (
        (f"{wide}, 0.3-Bottom", record["step"]["0.3"], 0.72, 0.66),
        (f"{wide}, 0.1-Bottom", record["step"]["0.1"], 0.64, 0.55),
        (f"{wide}, 0.3-Bottom, statistics of live neurons", record["live"], 0.62, 0.55),
        (f"{small}, 0.3-Bottom", record["small"], 0.85, 0.75),
    )
    for what, part, must, aim in cases:
        low, high = part["quartiles"]
        lines.append(Line(f"{what}: time over the plain step", 1 / part["speedup"], must, aim, (1 / high, 1 / low)))
    spread = record["epoch"]["ratios"]
    what = (
        f"epoch of the training loop, width {options['width']}, 0.3-Bottom, loader included, over as many plain steps"
    )
    lines.append(Line(what, record["epoch"]["ratio"], 0.75, 0.68, (spread[0], spread[-1])))
    peaks = record["memory"]
    if all("peak" in peaks[side] for side in ("plain", "rows")):
        ratio = peaks["rows"]["step"] / peaks["plain"]["step"]
        lines.append(Line("peak memory that steps add, 0.3-Bottom, over the plain network's", ratio, 0.9, 0.7))
    return lines


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    return "\n".join(_page(record))


def _page(record: dict[str, Any]) -> Iterator[str]:
    versions, machine, options = record["versions"], record["hardware"], record["options"]
    yield from (
        "# What training on the neurons that exist costs",
        "",
        f"Made by `{record['command']}` (seed {record['seed']}, {record['seconds'] / 60:.0f} minutes); all figures are "
        "in `record.json`. Each ratio is the median over rounds in which the sides were timed in turn, with its "
        "quartiles (an epoch's: the least and the largest of "
        f"{options['epochs']}). The plain side is the same network without masks, channels_last, as it is or after "
        "torch.compile, whichever is faster. A step is forward pass, backward pass and SGD, in float32; weights are "
        "random.",
        "",
        f"Machine: {machine['processor']}, {machine['threads']} threads; torch {versions['torch']}, "
        f"timm {versions['timm']}.",
        "",
        "| measured | value | quartiles | must | aim | |",
        "|---|---|---|---|---|---|",
    )
    for line in figures(record):
        unit, bound = ("x", ">= ") if line.smallest else ("", "<= ")
        low, high = line.quartiles or (line.value, line.value)
        quartiles = "" if line.quartiles is None else f"{low:.2f} .. {high:.2f}"
        yield (
            f"| {line.what} | {line.value:.2f}{unit} | {quartiles} | {bound}{line.must:g} | {line.aim:g} | "
            f"{'holds' if line.holds else 'MISSED'} |"
        )
    yield from (
        "",
        "## Milliseconds a step",
        "",
        "| | plain | after torch.compile | defective as it is | on rows | layers on rows | made in, s |",
        "|---|---|---|---|---|---|---|",
    )
    parts = {f"p = {p}": part for p, part in record["step"].items()}
    parts |= {"p = 0.3, live statistics": record["live"], f"p = 0.3, width {options['small_width']}": record["small"]}
    for name, part in parts.items():
        columns = [part["ms"].get(side) for side in ("plain", "compiled", "defective", "rows")]
        cells = " | ".join("-" if value is None else f"{value:.0f}" for value in columns)
        yield f"| {name} | {cells} | {part['on_rows']} of {part['layers']} | {part['made_s']:.1f} |"
    layers = ", ".join(
        f"{part['speedup']:.2f}x of {part['ideal']:.2f}x at p = {p}" for p, part in record["layer"].items()
    )
    worst = max(part["relative_error"] for part in record["layer"].values())
    yield from (
        "",
        f"One layer, beside the ideal of 1 / p: {layers}; largest relative error of its weight gradient {worst:.0e}.",
        "",
        f"Peak memory of a process that trains, gradients and momentum included: {_memory(record['memory'])}.",
        "",
    )


def _memory(sides: dict[str, Any]) -> str:
    return "; ".join(
        f"{side}: {part['reason']}"
        if "reason" in part
        else f"{side} {part['step']:.0f} MiB on top of {part['before']:.0f}"
        for side, part in sides.items()
    )


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        side, p, text, *rows = sys.argv[2:]
        print(json.dumps(measure_memory(side, float(p), replace(Options(), **json.loads(text)), rows)))
        return
    benchmark.main(
        HERE,
        __doc__,
        options=Options(),
        quick=QUICK,
        settable=asdict(Options()),
        measure=run,
        page=markdown,
    )


if __name__ == "__main__":
    main()
