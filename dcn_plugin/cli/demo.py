"""``defective demo``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dcn_plugin.cli.arguments import Commands, add_no_progress, folder, natural, positive

if TYPE_CHECKING:
    from dcn_plugin.experiments import DemoOutcome
    from dcn_plugin.report import Report

__all__ = ["add"]

_SEEDS = 3


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="train and attack small nets on real handwritten digits",
        description="Train a source, a standard net and three defective nets on scikit-learn's digits, attack the "
        "source with PGD, show the images to the others, add Gaussian noise. Prints tables; writes results.json, "
        "report.html and plots. With --pretrained it trains nothing and takes seconds.",
    )
    parser.add_argument(
        "--out", type=folder, default="demo-out", metavar="DIR", help="folder for the results (default: %(default)s)"
    )
    parser.add_argument(
        "--pretrained",
        action="store_true",
        help="take the networks that come with the package: a source, a standard one and a defective one (p=0.3), "
        "of seed 0, and 50 of the 450 test images",
    )
    parser.add_argument("--seeds", type=positive, metavar="N", help=f"number of runs (default: {_SEEDS})")
    parser.add_argument("--seed", type=natural, metavar="S", help="seed of the first run (default: 0)")
    parser.add_argument(
        "--fresh", action="store_true", help="run finished seeds again instead of reusing their results"
    )
    add_no_progress(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dcn_plugin.experiments import run_demo
    from dcn_plugin.report import write_report

    outcome = run_demo(
        args.out, seeds=_seeds(args), pretrained=args.pretrained, progress=not args.no_progress, fresh=args.fresh
    )
    report = _report(outcome)
    files = write_report(report, args.out)
    print(report.to_text())
    if outcome.reused:
        named = ", ".join(map(str, outcome.reused))
        print(f"\nReused finished results of seed {named} (--fresh runs them again).")
    print(f"\nPage: {files[0]}\nRecords: {files[0].with_name('results.json')}")
    return 0


def _seeds(args: argparse.Namespace) -> range | None:
    """The seeds that were asked for; None where the networks that come with the package bring their own."""
    if args.pretrained and args.seed is None and args.seeds is None:
        return None
    first = args.seed or 0
    return range(first, first + (args.seeds or (1 if args.pretrained else _SEEDS)))


def _report(outcome: DemoOutcome) -> Report:
    from dcn_plugin.experiments import BASELINE
    from dcn_plugin.report import Report

    return Report(
        title="Defective networks on handwritten digits",
        results=outcome.file.results,
        baseline=BASELINE,
        intro=outcome.intro,
        facts=outcome.facts,
        examples=outcome.examples,
    )
