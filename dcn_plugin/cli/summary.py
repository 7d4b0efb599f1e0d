"""``defective summary``."""

from __future__ import annotations

import argparse

from dcn_plugin.cli.arguments import Commands
from dcn_plugin.cli.models import MODELS, open_model

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "summary",
        help="list the masks of a defective model",
        description="Make a model, e.g. defective_resnet18, and list its masks: one row a site.",
    )
    parser.add_argument("model", metavar="MODEL", help=f"written like a target of evaluate: {MODELS}")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dcn_plugin.surgery.inspection import summary
    from dcn_plugin.surgery.wrappers import network_in

    print(summary(network_in(open_model(args.model, tell=lambda _: None))))
    return 0
