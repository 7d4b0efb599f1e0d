"""``defective summary``."""

from __future__ import annotations

import argparse

from dcn_plugin.cli.arguments import Commands
from dcn_plugin.errors import SpecError

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "summary",
        help="list the masks of a defective timm model",
        description="Make a timm model by name, e.g. defective_resnet18, and list its masks: one row a site.",
    )
    parser.add_argument("name", metavar="NAME", help="name of a timm model")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
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
