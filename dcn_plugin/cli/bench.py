"""``defective bench WHAT``: how fast this machine runs compact models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcn_plugin.cli.arguments import Commands, add_no_progress, folder, keep_probability, natural, positive
from dcn_plugin.cli.models import MODELS, open_models
from dcn_plugin.cli.processes import open_device

if TYPE_CHECKING:
    from torch import nn

    from dcn_plugin.engine.sweep import SpeedPoint

__all__ = ["add"]

KEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
BATCHES = (1, 8, 64)


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("bench", help="time compact models", description="Time what this package makes fast.")
    what = parser.add_subparsers(title="benchmarks", required=True, metavar="WHAT")
    engine = what.add_parser(
        "engine",
        help="speed of compact models over p, batch and network",
        description="Compact networks at several keep probabilities and batch sizes, and time each against the same "
        "network without masks (batch norm folded, channels_last). Prints a table; writes engine.json, engine.md and "
        "engine.png. Run it on an idle machine; OMP_NUM_THREADS says how many threads compute.",
    )
    engine.set_defaults(run=_run)
    engine.add_argument(
        "--model", action="append", required=True, metavar="NAME=MODEL", help=f"network, again for more: {MODELS}"
    )
    defaults = " ".join(map(str, KEEP))
    engine.add_argument(
        "--p",
        nargs="+",
        type=keep_probability,
        default=KEEP,
        metavar="P",
        help=f"keep probabilities (default: {defaults})",
    )
    defaults = " ".join(map(str, BATCHES))
    engine.add_argument(
        "--batch", nargs="+", type=positive, default=BATCHES, metavar="N", help=f"images a batch (default: {defaults})"
    )
    engine.add_argument("--size", type=positive, metavar="PIXELS", help="side of the images (default: the model's own)")
    engine.add_argument("--blocks", metavar="BLOCKS", help='"bottom", "paper", ... (default: the model\'s own)')
    engine.add_argument(
        "--backend", choices=("auto", "reference", "c", "triton"), default="auto", help="default: %(default)s"
    )
    engine.add_argument(
        "--rounds", type=_rounds, default=10, metavar="N", help="pairs of runs a measurement (default: %(default)s)"
    )
    engine.add_argument("--seed", type=natural, default=0, metavar="S", help="of weights and images (default: 0)")
    engine.add_argument("--device", default="cpu", metavar="DEVICE", help="torch device, e.g. cuda (default: cpu)")
    engine.add_argument("--out", type=folder, required=True, metavar="DIR", help="folder for the results")
    add_no_progress(engine)


def _run(args: argparse.Namespace) -> int:
    from dcn_plugin.engine.sweep import sweep_speed
    from dcn_plugin.report import speed_png, speed_table
    from dcn_plugin.support.atomic_file import check_output, write_atomic
    from dcn_plugin.support.progress import log_line, progress_bar

    out = Path(args.out)
    check_output(out)
    keep, batches = list(dict.fromkeys(args.p)), list(dict.fromkeys(args.batch))
    models = _networks(args)
    points: list[SpeedPoint] = []
    _write_record(out, args, points)
    with progress_bar(
        len(models) * len(keep) * len(batches), "bench engine", show=not args.no_progress, unit="run"
    ) as bar:
        for point in sweep_speed(
            models,
            keep=keep,
            batch_sizes=batches,
            blocks=args.blocks,
            size=args.size,
            rounds=args.rounds,
            backend=args.backend,
            seed=args.seed,
        ):
            points.append(point)
            _write_record(out, args, points)
            bar.update(1)
            log_line(
                f"{point.network}, p {point.p:g}, batch {point.speed.batch_size}: measured", show=not args.no_progress
            )
    table = speed_table(points)
    write_atomic(out / "engine.md", table.to_markdown() + "\n")
    write_atomic(out / "engine.png", speed_png(points))
    print(table.to_text())
    for point in points:
        if point.speed.note:
            print(f"{point.network}, p {point.p:g}, batch {point.speed.batch_size}: {point.speed.note}")
    print(f"\nPlot: {out / 'engine.png'}\nRecord: {out / 'engine.json'}")
    return 0


def _networks(args: argparse.Namespace) -> dict[str, nn.Module]:
    """The networks without their normalisation, which costs nothing beside them."""
    from dcn_plugin.support.randomness import isolated_rng
    from dcn_plugin.surgery.wrappers import network_in

    device = open_device(args.device)
    with isolated_rng(args.seed):
        models = open_models(args.model, "networks", device=device, tell=lambda _: None)
    return {name: network_in(model) for name, model in models.items()}


def _write_record(out: Path, args: argparse.Namespace, points: list[SpeedPoint]) -> None:
    from dcn_plugin.support.atomic_file import write_atomic
    from dcn_plugin.support.environment import hardware, package_versions

    settings: dict[str, Any] = {
        name: getattr(args, name) for name in ("model", "p", "batch", "size", "blocks", "backend", "rounds", "seed")
    }
    record = {
        "schema": 1,
        "command": "defective bench engine",
        "settings": settings,
        "versions": package_versions(),
        "hardware": hardware(open_device(args.device)),
        "results": [{"network": point.network, "p": point.p, **point.speed.to_json()} for point in points],
    }
    write_atomic(out / "engine.json", json.dumps(record, indent=1) + "\n")


def _rounds(text: str) -> int:
    """An int >= 2: one round has no quartiles."""
    number = positive(text)
    if number < 2:
        raise argparse.ArgumentTypeError("must be at least 2")
    return number
