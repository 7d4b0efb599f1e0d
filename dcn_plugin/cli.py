"""The command ``defective``: one small function a subcommand, errors as one line on stderr.

To add a subcommand: write ``_name(args) -> int`` and ``_add_name(commands)``, and list the latter in ``_COMMANDS``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from dcn_plugin.errors import DcnError, SpecError

if TYPE_CHECKING:
    from dcn_plugin.experiments import DemoOutcome
    from dcn_plugin.report import Report

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; those of the process when absent.

    Returns:
        0, 2 after an error that the user can mend, 130 after an interrupt.
    """
    args = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except DcnError as error:
        print(f"defective: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"defective: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("defective: interrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="defective",
        description="Defective convolutional networks (not deformable convolution): train, attack, report.",
    )
    parser.add_argument("--version", action="version", version=f"dcn-plugin {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("dcn-plugin")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _add_demo(commands: _Commands) -> None:
    parser = commands.add_parser(
        "demo",
        help="train and attack small nets on real handwritten digits",
        description="Train a source, a standard net and three defective nets on scikit-learn's digits, attack the "
        "source with PGD, show the images to the others, add Gaussian noise. Prints tables; writes results.json, "
        "report.html and plots.",
    )
    parser.add_argument(
        "--out", default="demo-out", metavar="DIR", help="folder for the results (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=_positive, default=3, metavar="N", help="number of runs (default: %(default)s)")
    parser.add_argument(
        "--seed", type=_natural, default=0, metavar="S", help="seed of the first run (default: %(default)s)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="run finished seeds again instead of reusing their results"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress bars")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from dcn_plugin.experiments import run_demo
    from dcn_plugin.report import write_report

    seeds = range(args.seed, args.seed + args.seeds)
    outcome = run_demo(args.out, seeds=seeds, progress=not args.no_progress, fresh=args.fresh)
    report = _demo_report(outcome)
    files = write_report(report, args.out)
    print(report.to_text())
    if outcome.reused:
        named = ", ".join(map(str, outcome.reused))
        print(f"\nReused finished results of seed {named} (--fresh runs them again).")
    print(f"\nPage: {files[0]}\nRecords: {files[0].with_name('results.json')}")
    return 0


def _demo_report(outcome: DemoOutcome) -> Report:
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


def _add_summary(commands: _Commands) -> None:
    parser = commands.add_parser(
        "summary",
        help="list the masks of a defective timm model",
        description="Make a timm model by name, e.g. defective_resnet18, and list its masks: one row a site.",
    )
    parser.add_argument("name", metavar="NAME", help="name of a timm model")
    parser.set_defaults(run=_summary)


def _summary(args: argparse.Namespace) -> int:
    import difflib

    import timm

    import dcn_plugin.models  # noqa: F401  registers the defective models
    from dcn_plugin.inspection import summary

    if not timm.is_model(args.name):
        near = difflib.get_close_matches(args.name, timm.list_models(), n=3)
        raise SpecError(
            "timm knows no model of this name.", args.name, fix=f"did you mean {', '.join(near)}?" if near else None
        )
    print(summary(timm.create_model(args.name)))
    return 0


def _positive(text: str) -> int:
    number = _natural(text)
    if not number:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _natural(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return number


_COMMANDS: tuple[Callable[[_Commands], None], ...] = (_add_demo, _add_summary)
