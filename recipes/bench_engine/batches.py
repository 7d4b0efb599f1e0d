"""How compact models fare beside the models as they are, at batch sizes other than the measured one.

Run it on an idle machine: ``.venv/bin/python -m recipes.bench_engine.batches``, some minutes a network on two cores.
It writes ``batches/NETWORK.json`` beside itself as soon as a network is measured, and ``batches/README.md`` of all
records there; ``--networks`` measures some of them.
``--quick`` is a smoke test whose figures mean nothing; it writes only where ``--out`` says. Each network is made
compact twice: while nothing else runs, and while other programs keep every core busy, which end before anything is
timed. A ratio is the time of the compact model over that of the model, both under ``torch.no_grad``, the median over
rounds in which they were timed in turn.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcn_plugin.engine import compact
from dcn_plugin.engine.bench import alternate, relative_error
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.surgery import defect_spec
from recipes import benchmark
from recipes.bench_engine.cases import network, noise

HERE = Path(__file__).parent
NETWORKS: dict[str, dict[str, Any]] = {
    "defective_resnet18_cifar": {"blocks": "paper"},
    "defective_densenet121": {"img_size": 64, "blocks": "bottom"},
    "defective_resnetv2_50": {"img_size": 64, "blocks": "bottom"},
    "defective_resnext50_32x4d": {"img_size": 64, "blocks": "bottom"},
    "defective_regnetx_002": {"img_size": 64, "blocks": "bottom"},
}
"""One of each kind: plain, dense and pre-activation, pre-activation with a residual, grouped, grouped and narrow."""
LIMIT = 1.05
"""Most of a ratio, at every batch size."""
ERROR_LIMIT = 1e-4


@dataclass(frozen=True)
class Options:
    """What the figures depend on, but for the machine and the versions."""

    seed: int = 0
    threads: int = 2
    p: float = 0.3
    measured: int = 32
    batches: tuple[int, ...] = (1, 2, 8, 11, 20, 32)
    rounds: int = 21
    spinning: int = 2


QUICK = Options(threads=1, measured=2, batches=(1, 2), rounds=2, spinning=1)


@contextlib.contextmanager
def spinning(count: int) -> Iterator[None]:
    """Other programs that never rest; they end with the context."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        if count:
            time.sleep(0.5)
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def compared(model: nn.Module, options: Options, *, busy: int) -> dict[str, Any]:
    """A model made compact beside so many spinning programs, and its ratios after they have ended."""
    start = time.perf_counter()
    with spinning(busy):
        fast = compact(model, batch_size=options.measured, use_cache=False)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {
        "compact_seconds": seconds,
        "backend": fast.plan.backend,
        "ways": [list(one) for one in fast.plan.ways],
        "chunks": list(fast.plan.chunks),
        "raced": list(fast.plan.raced),
        "plan_dense_ms": fast.plan.dense_ms,
        "plan_compact_ms": fast.plan.compact_ms,
        "note": fast.plan.note,
        "batches": {},
    }
    for count in options.batches:
        images = noise(count, *defect_spec(model).input_size, seed=options.seed)
        with torch.no_grad():
            error = relative_error(model(images), fast(images))
            calls = {"model": partial(model, images), "compact": partial(fast, images)}
            timed = alternate(calls, rounds=options.rounds)
        low, high = (1 / one for one in reversed(timed["compact"].quartiles))
        found["batches"][str(count)] = {
            "model_ms": timed["model"].median_ms,
            "compact_ms": timed["compact"].median_ms,
            "ratio": 1 / timed["compact"].speedup,
            "quartiles": [low, high],
            "relative_error": error,
            "holds": 1 / timed["compact"].speedup <= LIMIT and error <= ERROR_LIMIT,
        }
    return found


def run(name: str, options: Options, command: str) -> dict[str, Any]:
    """Measure a network, made compact on an idle machine and on a busy one."""
    begin = time.perf_counter()
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {**benchmark.head(options, command), "limit": LIMIT, "network": name}
    model = network(name, p=options.p, seed=options.seed, **NETWORKS[name])
    for made, busy in (("idle", 0), ("busy", options.spinning)):
        record[made] = compared(model, options, busy=busy)
    record["seconds"] = time.perf_counter() - begin
    record["missed"] = missed(record)
    return record


def missed(record: dict[str, Any]) -> list[str]:
    """Every figure beyond its limit, in words."""
    return [
        f"{record['network']}, made on a {made} machine, batch {count}: {part['ratio']:.3f} of the model's time, error "
        f"{part['relative_error']:.0e}"
        for made in ("idle", "busy")
        for count, part in record[made]["batches"].items()
        if not part["holds"]
    ]


def table(records: Sequence[dict[str, Any]]) -> str:
    """The ratios as Markdown."""
    sizes = records[0]["options"]["batches"]
    lines = [
        f"| network, compact at batch {records[0]['options']['measured']} | made | "
        + " | ".join(f"batch {size}" for size in sizes)
        + " | compact(), s |",
        "|---|---|" + "---|" * len(sizes) + "---|",
    ]
    for record in records:
        for made in ("idle", "busy"):
            ratios = " | ".join(f"{record[made]['batches'][str(size)]['ratio']:.2f}" for size in sizes)
            lines.append(f"| {record['network']} | {made} | {ratios} | {record[made]['compact_seconds']:.1f} |")
    return "\n".join([*lines, "", *(f"MISSED: {text}" for record in records for text in record["missed"])])


def page(records: Sequence[dict[str, Any]]) -> str:
    """The records as a page."""
    options, hardware, versions = (records[0][part] for part in ("options", "hardware", "versions"))
    busy = [record["network"] for record in records if "busy machine" in record["idle"]["note"]]
    return f"""# Compact models at other batch sizes than the measured one

Made by `python -m recipes.bench_engine.batches` (seed {options["seed"]}); all figures are in the JSON files. A ratio is
the time of the compact model over that of the model as it is, the median of {options["rounds"]} rounds in which both
were timed in turn; at most {LIMIT} is asked for. Each network was made compact twice: on an idle machine, and beside
{options["spinning"]} programs that never rest, which end before anything is timed.

Machine: {hardware["processor"]} ({hardware["instructions"]}), {hardware["threads"]} threads; torch {versions["torch"]},
timm {versions["timm"]}.

{table(records).rstrip()}

Other programs were noticed while these were made compact as idle: {", ".join(busy) or "none"}.
"""


def command_of(args: argparse.Namespace) -> str:
    """The command as the records name it; where they are written changes nothing in them."""
    words = ["python -m recipes.bench_engine.batches", *(["--quick"] if args.quick else [])]
    words += ["--networks", *args.networks] if args.networks else []
    return " ".join([*words, *(["--rounds", str(args.rounds)] if args.rounds else [])])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test; needs --out")
    parser.add_argument("--out", type=Path, help="folder for the records (default: batches/ beside the script)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="default: all")
    parser.add_argument("--rounds", type=int, help=f"default {Options.rounds}")
    args = parser.parse_args()
    if args.quick and args.out is None:
        parser.error("--quick needs --out: its figures must not replace the record")
    options = QUICK if args.quick else Options()
    if args.rounds:
        options = replace(options, rounds=args.rounds)
    command = command_of(args)
    folder = HERE / "batches" if args.out is None else args.out
    records = []
    for name in args.networks or (list(NETWORKS)[:1] if args.quick else NETWORKS):
        records.append(run(name, options, command))
        write_atomic(folder / f"{name}.json", json.dumps(records[-1], indent=1) + "\n")
        print(f"{name}: {records[-1]['seconds']:.0f} s", flush=True)
    kept = sorted(folder.glob("*.json"), key=lambda path: list(NETWORKS).index(path.stem))
    write_atomic(folder / "README.md", page([json.loads(path.read_text(encoding="utf-8")) for path in kept]))
    print(table(records))


if __name__ == "__main__":
    main()
