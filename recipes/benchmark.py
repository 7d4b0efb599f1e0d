"""The command line that benchmarks with a dataclass of options share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcn_plugin.files import write_atomic


def main(
    here: Path,
    about: str | None,
    *,
    options: Any,
    quick: Any,
    settable: Iterable[str],
    measure: Callable[[Any, str], dict[str, Any]],
    page: Callable[[dict[str, Any]], str],
) -> None:
    """Measure, and write record.json and README.md.

    Args:
        here: folder of the benchmark, recipes/NAME.
        about: shown by --help.
        options: a frozen dataclass; ``quick`` is the same for a smoke test.
        settable: names of its int fields that the command line may set.
        measure: (options, command) -> the record.
        page: the record as Markdown.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test; needs --out")
    parser.add_argument("--out", type=Path, help="folder for record.json and README.md (default: beside the script)")
    for name in settable:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default {getattr(options, name)}")
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    is_quick, out = given.pop("quick"), given.pop("out", None)
    if is_quick and out is None:
        parser.error("--quick needs --out: its figures must not replace the record")
    command = " ".join([f"python -m recipes.{here.name}.bench", *sys.argv[1:]])
    record = measure(replace(quick if is_quick else options, **given), command)
    folder = here if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "record.json", json.dumps(record, indent=1) + "\n")
    write_atomic(folder / "README.md", page(record))
    print(page(record))
