"""``defective choose``: which p a trained network can afford, by short fine-tunings."""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dcn_plugin.cli.arguments import Commands, add_no_progress, folder, keep_probability, natural, number, positive
from dcn_plugin.cli.attacks import ATTACKS, open_attacks
from dcn_plugin.cli.defects import Defects, add_init_from, open_defects
from dcn_plugin.cli.models import MODELS, open_model, open_models
from dcn_plugin.cli.train import set_fields
from dcn_plugin.cli.train_data import add_train_data, check_channels, open_train_data, training_device
from dcn_plugin.errors import SpecError

if TYPE_CHECKING:
    from dcn_plugin.experiments.choose import Candidate, Choice
    from dcn_plugin.training import TrainConfig

__all__ = ["add"]

KEEP = (0.7, 0.5, 0.3, 0.1)
EPOCHS, LR = 4, 0.05
ITSELF = "itself"


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "choose",
        help="find the p that a trained network can afford",
        description="Find the keep probability and the blocks that gain most under transfer attacks for a clean "
        "accuracy that may be lost. Every candidate is fine-tuned with gradual defects for a few epochs, the better "
        "half for twice as many, until two are left. Prints the expected time first, then a table and the command that "
        "makes the chosen network; writes choice.json and choice.png. It chooses on validation images: report the "
        "network on others. A run that was stopped goes on with the same command.",
    )
    parser.add_argument("model", metavar="MODEL", help=f"a trained network without masks: {MODELS}")
    add_init_from(parser)
    parser.add_argument(
        "--lose", type=number, required=True, metavar="POINTS", help="clean accuracy that may be lost, e.g. 2: points"
    )
    add_train_data(parser)
    keep = " ".join(map(str, KEEP))
    parser.add_argument(
        "--p", nargs="+", type=keep_probability, default=KEEP, metavar="P", help=f"candidates (default: {keep})"
    )
    parser.add_argument(
        "--blocks",
        nargs="+",
        default=["bottom"],
        metavar="BLOCKS",
        help="candidates, each with every p: bottom, top, all, paper, a number, or a glob (default: bottom)",
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="a network that the attacker has, written like MODEL; may be given several times (default: the network "
        "itself, without masks)",
    )
    parser.add_argument(
        "--attack", action="append", default=[], metavar="ATTACK", help=f"default: pgd,eps=8/255,steps=10. {ATTACKS}"
    )
    parser.add_argument(
        "--epochs", type=positive, default=EPOCHS, metavar="N", help=f"of a trial of the last round (default: {EPOCHS})"
    )
    parser.add_argument("--batch-size", type=positive, metavar="N", help="images a step")
    parser.add_argument("--lr", type=number, default=LR, metavar="X", help=f"highest learning rate (default: {LR})")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other field of TrainConfig"
    )
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="S", help="of masks, order, augmentation (default: 0)"
    )
    parser.add_argument("--device", metavar="DEVICE", help="torch device (default: cuda where there is one, else cpu)")
    parser.add_argument("--out", type=folder, required=True, metavar="DIR", help="folder of the trials")
    add_no_progress(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dcn_plugin.experiments.choose import choose_defects
    from dcn_plugin.report.plots import trade_off_png
    from dcn_plugin.support.atomic_file import check_output, write_atomic
    from dcn_plugin.support.randomness import derived_seed, isolated_rng
    from dcn_plugin.training.checks import check_fit

    check_output(args.out)
    args.defects = None
    start, config, candidates = open_defects(args), _config(args), _candidates(args)
    attacks = open_attacks(args.attack or ["pgd,eps=8/255,steps=10"])
    data, device = open_train_data(args, config), training_device(args.device)
    if data.val is None:
        raise SpecError("The choice needs validation images.", args.val_share, "--val DATA, or --val-share above 0")

    def tell(line: str) -> None:
        print(f"defective: {line}", file=sys.stderr)

    with isolated_rng(derived_seed(config.seed, "weights")):
        model = open_model(start.spelled(args.model), tell=tell)
    check_channels(args.model, model, data.train.shape[0])
    model = start.network(model, data.train.shape).to(device).eval()
    check_fit(model, data.train.shape, data.train.num_classes)
    sources = open_models(args.source, "sources", device=device, tell=tell) or {ITSELF: model}
    choice = choose_defects(
        model,
        data.train,
        data.val,
        candidates,
        lose=args.lose / 100,
        sources=sources,
        attacks=attacks,
        config=config,
        out=args.out,
        seed=args.seed,
        workers=args.workers,
        progress=not args.no_progress,
        tell=lambda line: print(line, flush=True),
    )
    picture = Path(args.out) / "choice.png"
    write_atomic(picture, trade_off_png(_points(choice), least=choice.least))
    print(_report(args, choice, start))
    return 0


def _config(args: argparse.Namespace) -> TrainConfig:
    import dataclasses

    from dcn_plugin.training import TrainConfig

    changes = {"lr": args.lr, "seed": args.seed, **set_fields(args.set)}
    if args.batch_size is not None:
        changes["batch_size"] = args.batch_size
    return dataclasses.replace(TrainConfig.fast().lasting(args.epochs), **changes)


def _candidates(args: argparse.Namespace) -> list[Candidate]:
    from dcn_plugin.experiments.choose import Candidate

    named: list[str | tuple[int]] = [(int(text),) if text.isdigit() else text for text in args.blocks]
    pairs = itertools.product(dict.fromkeys(named), dict.fromkeys(args.p))
    return [Candidate(p, blocks) for blocks, p in pairs]


def _points(choice: Choice) -> dict[str, list[tuple[str, float, float]]]:
    """The networks as the plot takes them: as it was, and round by round."""
    points = {"without masks": [("", choice.clean, choice.attacked)]}
    for trial in choice.trials:
        label = f"round {trial.stage}, {trial.epochs} epochs"
        points.setdefault(label, []).append((str(trial.candidate), trial.clean, trial.attacked))
    return points


def _report(args: argparse.Namespace, choice: Choice, start: Defects) -> str:
    """The table, and the command that makes the chosen network."""
    from dcn_plugin.support.table import aligned

    rows = [["network", "round", "epochs", "  clean", "attacked"]]
    rows.append(["without masks", "-", "-", f"{choice.clean:.2%}", f"{choice.attacked:.2%}"])
    for trial in choice.trials:
        mark = " *" if trial == choice.chosen else ""
        shares = [f"{trial.clean:.2%}", f"{trial.attacked:.2%}"]
        rows.append([f"{trial.candidate}{mark}", str(trial.stage), str(trial.epochs), *shares])
    lines = ["", *aligned(rows, "lrrrr"), f"Least clean accuracy: {choice.least:.2%}. Chosen (*) on validation images."]
    best = choice.nearest
    if choice.chosen is None:
        lines += [
            "",
            f"No candidate of the last round stays above it. {best.candidate} comes nearest, at {best.clean:.2%}: "
            "allow more epochs, a larger p, or a greater loss.",
        ]
    lines += ["", "To make it:", f"    {_command(args, best.candidate, start)}"]
    return "\n".join([*lines, f"Plot: {Path(args.out) / 'choice.png'}", f"Record: {Path(args.out) / 'choice.json'}"])


def _command(args: argparse.Namespace, candidate: Candidate, start: Defects) -> str:
    """``defective train`` with the candidate's masks; more epochs than a trial's would do it good."""
    words = ["defective", "train", args.model, "--data", args.data]
    words += ["--init-from", args.init_from] if start.init_from is not None else []
    words += ["--defects", f"gradual,p={candidate.p:g},blocks={candidate.blocks},seed={args.seed}"]
    words += ["--epochs", str(args.epochs), "--lr", f"{args.lr:g}", "--seed", str(args.seed)]
    for name in ("val", "test", "size", "resize", "limit", "batch_size"):
        value = getattr(args, name)
        if value is not None:
            shown = "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", shown]
    words += ["--val-share", f"{args.val_share:g}"] if args.val is None else []
    for text in args.set:
        words += ["--set", text]
    return shlex.join([*words, "--out", str(Path(args.out) / "chosen")])
