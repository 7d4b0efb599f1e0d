"""The command ``defective``: one file a subcommand, errors as one line on stderr.

To add a subcommand: write a file with ``add(commands)``, which makes its parser and sets ``run=`` to a function
``(args) -> exit status``, and list it in ``_COMMANDS``.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

from dcn_plugin.cli.arguments import Commands
from dcn_plugin.cli.bench import add as add_bench
from dcn_plugin.cli.choose import add as add_choose
from dcn_plugin.cli.demo import add as add_demo
from dcn_plugin.cli.evaluate import add as add_evaluate
from dcn_plugin.cli.evaluate import add_protocols
from dcn_plugin.cli.export import add as add_export
from dcn_plugin.cli.parsers import Parser
from dcn_plugin.cli.recipe import add as add_recipe
from dcn_plugin.cli.report import add as add_report
from dcn_plugin.cli.summary import add as add_summary
from dcn_plugin.cli.train import add as add_train
from dcn_plugin.errors import DcnError
from dcn_plugin.support import startup

__all__ = ["main"]

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; those of the process when absent.

    Returns:
        0, 2 after an error that the user can mend, 130 after an interrupt, 141 where nobody reads the output any more.
    """
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(argv).parse_args(argv)
    startup.finish()
    run: Callable[[argparse.Namespace], int] = args.run
    logging.basicConfig(level=logging.WARNING, format="defective: %(message)s", stream=sys.stderr)
    try:
        with _plain_warnings():
            return run(args)
    except BrokenPipeError:  # whoever read the output has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except DcnError as error:
        print(f"defective: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"defective: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("defective: interrupted; what is finished is kept, the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings look like the other messages of the command, without a line of its source."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"defective: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _parser(argv: Sequence[str] | None = None) -> Parser:
    """The parser of a command line, or of all: the protocols load torch, and wait until ``evaluate`` is named."""
    parser = Parser(
        prog="defective",
        description="Defective convolutional networks (not deformable convolution): train, attack, report.",
    )
    parser.add_argument("--version", action="version", version=f"dcn-plugin {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    if argv is None or "evaluate" in argv:
        add_protocols(commands.choices["evaluate"])
    return parser


def _version() -> str:
    try:
        return metadata.version("dcn-plugin")
    except metadata.PackageNotFoundError:
        return "(not installed)"


_COMMANDS: tuple[Callable[[Commands], None], ...] = (
    add_bench,
    add_choose,
    add_demo,
    add_evaluate,
    add_export,
    add_recipe,
    add_report,
    add_summary,
    add_train,
)
