"""``defective report``: turn the records of a run into tables, plots and a page."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING

from dcn_plugin.cli.arguments import Commands, folder, positive, size

if TYPE_CHECKING:
    from dcn_plugin.data import IndexedImages

__all__ = ["add", "show"]


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "report",
        help="turn records into tables, plots and a page",
        description="Read the records of a run, of several, or of one that was stopped. Prints tables; writes "
        "report.html (self-contained), tables.md, tables.tex, records.csv and plots.",
    )
    parser.add_argument("run_dir", metavar="DIR", help="run directory, results.json, or a folder of run directories")
    parser.add_argument(
        "--out", type=folder, metavar="DIR", help="folder for the report (default: DIR, or that of the file)"
    )
    parser.add_argument("--title", help="of the report (default: the folder's name)")
    parser.add_argument("--baseline", metavar="NAME", help="target that the others are held against")
    parser.add_argument("--data", metavar="DATA", help="clean images, as in evaluate, to show beside adversarial ones")
    parser.add_argument("--size", type=size, metavar="PIXELS", help="of the clean images, as in evaluate")
    parser.add_argument("--resize", type=positive, metavar="PIXELS", help="of the clean images, as in evaluate")
    parser.add_argument("--limit", type=positive, metavar="N", help="of the clean images, as in evaluate")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from dcn_plugin.support.atomic_file import check_output

    folder = args.run_dir if os.path.isdir(args.run_dir) else os.path.dirname(args.run_dir) or "."
    check_output(args.out or folder)
    data = None
    if args.data is not None:
        from dcn_plugin.data import open_images

        data = open_images(args.data, size=args.size, resize=args.resize, limit=args.limit)
    return show(args.run_dir, args.out or folder, title=args.title, baseline=args.baseline, data=data)


def show(
    run_dir: str, out: str, *, title: str | None = None, baseline: str | None = None, data: IndexedImages | None = None
) -> int:
    """Print the report of ``run_dir`` and write it into ``out``."""
    from dcn_plugin.report import adversarial_grids, load_run, write_report

    report = load_run(run_dir, title=title, baseline=baseline)
    report = dataclasses.replace(report, grids=adversarial_grids(run_dir, data))
    files = write_report(report, out)
    print(report.to_text())
    print(f"\nPage: {files[0]}\nRecords: {os.path.join(out, 'records.csv')}")
    return 0
