"""How fast compact models are: beside the same networks without masks, as fast as PyTorch runs those.

Run it on an idle machine: ``.venv/bin/python -m recipes.bench_engine.bench``, some minutes on two cores with AVX-512
and half an hour without. It writes ``record.json`` and ``README.md`` beside itself; the figures of each part are kept
in ``parts`` as they come, and a run that was stopped goes on where it was. ``--quick`` is a smoke test whose figures
mean nothing; it writes only where ``--out`` says.

Each ratio comes from rounds in which the sides were timed one after the other in one run, so that a change in the
machine's speed falls on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcn_plugin.engine.bench import measure_speed
from dcn_plugin.engine.machine_key import machine
from recipes import benchmark
from recipes.bench_engine.cases import attack, bottom_of, compaction, compaction_calls, gpu, layer, network
from recipes.bench_engine.children import on_avx2, peak_memory, with_compiled

HERE = Path(__file__).parent
SMALL, LARGE = "defective_resnet18_cifar", "defective_resnet50"
P = (0.3, 0.1)


@dataclass(frozen=True)
class Options:
    """What the figures depend on, but for the machine and the versions."""

    seed: int = 0
    threads: int = 2
    width: int = 64
    batch: int = 64
    rounds: int = 15
    single_rounds: int = 40
    attack_steps: int = 20
    attack_rounds: int = 3
    large_size: int = 224
    large_batch: int = 16
    large_rounds: int = 6
    gpu_batch: int = 256
    compile_limit_s: int = 60


QUICK = Options(
    width=8,
    batch=4,
    rounds=2,
    single_rounds=2,
    attack_steps=2,
    attack_rounds=2,
    large_size=64,
    large_batch=2,
    large_rounds=2,
    gpu_batch=4,
    compile_limit_s=60,
)


@dataclass(frozen=True)
class Line:
    """A figure that has a limit.

    Args:
        what: was measured.
        value: of it.
        must: the limit.
        aim: what is hoped for.
        largest: whether the limit is an upper one.
        quartiles: of the value.
        ideal: speed-up at the dense kernels' own rate.
    """

    what: str
    value: float
    must: float
    aim: float | None = None
    largest: bool = False
    quartiles: tuple[float, float] | None = None
    ideal: float | None = None

    @property
    def holds(self) -> bool:
        return self.value < self.must if self.largest else self.value >= self.must


def run(options: Options, command: str, *, parts: Path | None = None) -> dict[str, Any]:
    """Measure everything, part by part.

    Args:
        options: what the figures depend on.
        command: that made the record.
        parts: folder in which the figures of each part are kept; None: nowhere.
    """
    torch.set_num_threads(options.threads)
    seed, rounds, batch = options.seed, options.rounds, options.batch
    head = benchmark.head(options, command)
    part = benchmark.Parts(parts, {"options": head["options"], **machine(torch.device("cpu"))})
    nets = {p: network(SMALL, p=p, seed=seed, width=options.width) for p in P}
    large = network(LARGE, p=0.3, seed=seed, img_size=options.large_size)

    def speed(net: nn.Module, batch_size: int, rounds: int = rounds) -> Callable[[], dict[str, Any]]:
        return lambda: measure_speed(net, batch_size=batch_size, rounds=rounds, seed=seed).to_json()

    def calls(net: nn.Module, batch_size: int) -> Callable[[], dict[str, Any]]:
        return lambda: compaction_calls(net, batch=batch_size)

    shared = {
        "name": SMALL,
        "p": 0.3,
        "batch": batch,
        "rounds": rounds,
        "seed": seed,
        "threads": options.threads,
        "make": {"width": options.width},
    }
    attacked = {"steps": options.attack_steps, "rounds": options.attack_rounds, "seed": seed}
    record: dict[str, Any] = {
        **head,
        "seed": seed,
        "layer": {
            str(p): part(f"layer-{p}", partial(layer, p, batch=batch, rounds=rounds, seed=seed)) for p in (0.5, *P)
        },
        "bottom": {str(p): part(f"bottom-{p}", speed(bottom_of(net), batch)) for p, net in nets.items()},
        "whole": {str(p): part(f"whole-{p}", speed(net, batch)) for p, net in nets.items()},
        "batch_1": part("batch-1", speed(nets[0.3], 1, options.single_rounds)),
        "attack": part("attack", partial(attack, nets[0.3], batch=batch, **attacked)),
        "compaction": part("compaction", partial(compaction, nets[0.3], batch=batch)),
        "large": part("large", speed(large, options.large_batch, options.large_rounds)),
        "compaction_calls": {
            SMALL: part("calls-small", calls(nets[0.3], batch)),
            LARGE: part("calls-large", calls(large, options.large_batch)),
        },
        "nothing_to_skip": part("nothing-to-skip", partial(_nothing_to_skip, options)),
        "avx2": part("avx2", partial(on_avx2, shared)),
        "memory": part("memory", partial(peak_memory, shared)),
        "compiled": part("compiled", partial(with_compiled, shared, limit_s=options.compile_limit_s)),
        "gpu": {str(p): gpu(net, batch=options.gpu_batch, rounds=rounds, seed=seed) for p, net in nets.items()}
        if torch.cuda.is_available()
        else {"reason": "no GPU"},
    }
    record["seconds"] = part.seconds
    record["limits"] = [{**asdict(line), "holds": line.holds} for line in figures(record)]
    return record


def _nothing_to_skip(options: Options) -> dict[str, Any]:
    """Networks that keep every neuron: what compact() gains without any sparsity."""
    seed = options.seed
    small = network(SMALL, p=1.0, seed=seed, width=options.width)
    large = network(LARGE, p=1.0, seed=seed, img_size=options.large_size)
    cases = {
        "whole": (small, options.batch, options.rounds),
        "batch_1": (small, 1, options.single_rounds),
        "large": (large, options.large_batch, options.large_rounds),
    }
    return {
        name: measure_speed(model, batch_size=batch, rounds=rounds, seed=seed).to_json()
        for name, (model, batch, rounds) in cases.items()
    }


def figures(record: dict[str, Any]) -> list[Line]:
    """Every figure that has a limit."""
    options = record["options"]
    batch = f"batch {options['batch']}"
    lines = [
        _line(f"one 3x3 layer 64 -> 64 at 32x32, p = {p}, {batch}", record["layer"][p], must, aim)
        for p, must, aim in (("0.5", 3, 4), ("0.3", 8, 11), ("0.1", 40, 100))
    ]
    name = "ResNet-18 CIFAR"
    large = record["large"]
    lines += [
        _line(f"{name}, bottom blocks, p = 0.3, {batch}", record["bottom"]["0.3"], 5, 8),
        _line(f"{name}, whole, p = 0.3, {batch}", record["whole"]["0.3"], 1.8, 2.2),
        _line(f"{name}, whole, p = 0.1, {batch}", record["whole"]["0.1"], 2.0, 2.3),
        _line(f"white-box PGD-{options['attack_steps']} against it, p = 0.3, {batch}", record["attack"], 1.6, 2.1),
        _line(f"{name}, whole, p = 0.3, batch 1", record["batch_1"], 1.0, 1.3),
        _line(
            f"ResNet-50 at {options['large_size']}, p = 0.3, batch {options['large_batch']}", large, 1.1, large["ideal"]
        ),
    ]
    for what, text, must, aim in (("layer", "one 3x3 layer", 8, 10), ("whole", f"{name}, whole", 1.8, 2.1)):
        if "speedup" in record["avx2"].get(what, {}):
            lines.append(_line(f"{text}, p = 0.3, {batch}, both sides on AVX2", record["avx2"][what], must, aim))
    errors = [record[part][p]["relative_error"] for part in ("layer", "bottom", "whole") for p in record[part]]
    errors += [record[part]["relative_error"] for part in ("batch_1", "large")]
    packing = record["compaction"]["packing_s"]
    calls = [
        Line(
            f"{what} compact() of {network}, p = 0.3, seconds",
            record["compaction_calls"][key][f"{what}_s"],
            must,
            aim,
            True,
        )
        for key, network, what, must, aim in (
            (SMALL, name, "first", 3.0, None),
            (SMALL, name, "second", 0.8, 0.4),
            (LARGE, f"ResNet-50 at {options['large_size']}", "first", 9.0, None),
            (LARGE, f"ResNet-50 at {options['large_size']}", "second", 3.0, 1.5),
        )
    ]
    return [
        *lines,
        Line("largest relative error of the outputs", max(errors), 1e-4, largest=True),
        Line(f"packing of {name}, p = 0.3, seconds", packing, 2.0, largest=True),
        *calls,
    ]


def _line(what: str, part: dict[str, Any], must: float, aim: float) -> Line:
    low, high = part["quartiles"]
    return Line(f"{what}: speed-up", part["speedup"], must, aim, quartiles=(low, high), ideal=part.get("ideal"))


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    return "\n".join(_page(record))


def _page(record: dict[str, Any]) -> Iterator[str]:
    versions, machine, options = record["versions"], record["hardware"], record["options"]
    yield from (
        "# How fast compact models are",
        "",
        f"Made by `{record['command']}` (seed {record['seed']}, {record['seconds'] / 60:.0f} minutes); all figures are "
        "in `record.json`. A speed-up is the time of the dense side over that of the compact one, under "
        "`torch.inference_mode`, the median over rounds in which both were timed in turn, each right after an untimed "
        "call of its own, with its quartiles. The "
        "dense side is the same network without masks, batch norm folded, channels_last. The ideal: the live "
        "multiply-adds take the time that the dense kernels take for as many. Masks as in the paper; weights are "
        f"random, float32, those of ResNet-18 at width {options['width']}.",
        "",
        f"Machine: {machine['processor']}, {machine['threads']} threads; torch {versions['torch']}, "
        f"timm {versions['timm']}.",
        "",
        "| measured | value | quartiles | must | aim | ideal | of the ideal | |",
        "|---|---|---|---|---|---|---|---|",
    )
    for line in figures(record):
        speedup = not line.largest
        value = f"{line.value:.2f}x" if speedup else f"{line.value:.2g}"
        quartiles = "" if line.quartiles is None else f"{line.quartiles[0]:.2f} .. {line.quartiles[1]:.2f}"
        must = f"{line.must:g}x" if speedup else f"< {line.must:g}"
        aim = "" if line.aim is None else f"{line.aim:.3g}x" if speedup else f"{line.aim:g}"
        ideal = ("", "") if line.ideal is None else (f"{line.ideal:.2f}x", f"{line.value / line.ideal:.0%}")
        holds = "holds" if line.holds else "MISSED"
        yield f"| {line.what} | {value} | {quartiles} | {must} | {aim} | {ideal[0]} | {ideal[1]} | {holds} |"
    yield from _details(record)


def _details(record: dict[str, Any]) -> Iterator[str]:
    yield from (
        "",
        "## Milliseconds and memory",
        "",
        "| | dense ms | compact ms | runs on | packed MiB | compact(), s |",
        "|---|---|---|---|---|---|",
    )
    parts = [
        *((f"one layer, p = {p}", part) for p, part in record["layer"].items()),
        *((f"bottom blocks, p = {p}", part) for p, part in record["bottom"].items()),
        *((f"whole, p = {p}", part) for p, part in record["whole"].items()),
        ("whole, p = 0.3, batch 1", record["batch_1"]),
        ("ResNet-50, p = 0.3", record["large"]),
    ]
    for name, part in parts:
        yield (
            f"| {name} | {part['dense_ms']:.2f} | {part['compact_ms']:.2f} | {part['backend']} | "
            f"{part['packed_bytes'] / 2**20:.1f} | {part['compact_seconds']:.2f} |"
        )
    idle = {name: f"{part['speedup']:.2f}x" for name, part in record["nothing_to_skip"].items()}
    yield from (
        "",
        "Not all of it is sparsity. Where a network keeps every neuron, p = 1, compact() still lays weights out once "
        f"and runs batches in chunks where that is faster: {idle['whole']} for the whole ResNet-18, {idle['batch_1']} "
        f"at batch 1, {idle['large']} for ResNet-50.",
    )
    moves = ", ".join(
        f"{part['to_rows_ms']:.2f} and {part['to_images_ms']:.2f} ms at p = {p}" for p, part in record["layer"].items()
    )
    made, attacked = record["compaction"], record["attack"]
    yield from (
        "",
        f"The layer reads rows and writes rows. Converting images to rows and back takes {moves}.",
        "",
        f"compact() of the whole network at p = 0.3 takes {made['whole_s']:.1f} s: {made['capture_s']:.1f} s to "
        f"capture the graph, {made['choosing_s']:.1f} s to measure and choose, {made['packing_s']:.2f} s to make "
        f"the lists of rows; those of the gradient take {made['packing_gradient_s']:.2f} s, at the first gradient.",
        "",
        f"PGD: {attacked['ms']['dense'] / 1000:.2f} s against the dense side, {attacked['ms']['compact'] / 1000:.2f} s "
        f"against the compact one, {attacked['speedup_over_defective']:.2f} times faster than against the defective "
        f"model as it is; relative error of the gradient {attacked['gradient_relative_error']:.0e}.",
        "",
        f"Peak resident memory, a process each: {_memory(record['memory'])}.",
        "",
        f"AVX2, to which both sides were bound by their environment: {_avx2(record['avx2'])}.",
        "",
        *(f"- torch.compile, {what}: {_compiled(part)}" for what, part in record["compiled"].items()),
        "",
        f"GPU: {_gpu(record['gpu'])}.",
        "",
    )


def _memory(memory: dict[str, Any]) -> str:
    return "; ".join(
        f"{side}: {part['reason']}"
        if "reason" in part
        else f"{side} {part['running']:.0f} MiB running, {part['making']:.0f} being made, {part['before']:.0f} before"
        for side, part in memory.items()
    )


def _avx2(part: dict[str, Any]) -> str:
    if "reason" in part:
        return str(part["reason"])
    return "; ".join(
        f"{what}: {side['reason']}"
        if "reason" in side
        else f"{what} {side['dense_ms']:.1f} ms dense, {side['compact_ms']:.1f} ms compact ({side['lanes']} lanes)"
        for what, side in part.items()
    )


def _compiled(part: dict[str, Any]) -> str:
    if "reason" in part:
        return f"not measured: {part['reason']}."
    low, high = part["quartiles"]
    return (
        f"the dense side takes {part['compiled_over_dense']:.2f} of its time as it is, after {part['compile_s']:.0f} s "
        f"of compiling; over that one the compact side is {part['speedup']:.2f}x ({low:.2f} .. {high:.2f}) faster."
    )


def _gpu(part: dict[str, Any]) -> str:
    if "reason" in part:
        return str(part["reason"])
    return "; ".join(
        f"bottom blocks, p = {p}, batch {one['batch_size']}, against bfloat16: {one['speedup']:.2f}x ({one['backend']})"
        for p, one in part.items()
    )


def main() -> None:
    benchmark.main(
        HERE,
        __doc__,
        options=Options(),
        quick=QUICK,
        settable=asdict(Options()),
        measure=partial(run, parts=HERE / "parts"),
        page=markdown,
    )


if __name__ == "__main__":
    main()
