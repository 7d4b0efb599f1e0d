"""What benchmarks with a dataclass of options share: the head of their records, and the command line."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.environment import hardware, package_versions


def head(options: Any, command: str, *, schema: int = 1, packages: Iterable[str] = ()) -> dict[str, Any]:
    """What every record begins with.

    Args:
        options: a dataclass.
        command: that made the record.
        schema: of the record.
        packages: whose versions it names beside the usual ones.
    """
    return {
        "schema": schema,
        "command": command,
        "options": asdict(options),
        "versions": {**package_versions(), **{name: metadata.version(name) for name in packages}},
        "hardware": hardware(),
    }


class Parts:
    """Figures of a long benchmark, kept one by one: a run that was stopped goes on with the same command.

    Args:
        folder: one file a part; None: nothing is kept.
        key: JSON values that all parts depend on, the code included. Figures of another key count as not there.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any]) -> None:
        self._folder = folder
        self._digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
        self.seconds = 0.0
        """What the measuring of all parts took, in this run and in earlier ones."""

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """Figures that were kept, or that are measured and kept now.

        Args:
            name: of the part, and of its file; letters, digits, "_", "." and "-".
            measure: takes the figures, JSON values.
        """
        file = None if self._folder is None else self._folder / f"{name}-{self._digest}.json"
        if file is not None and file.is_file():
            kept = json.loads(file.read_text("utf-8"))
        else:
            begin = time.perf_counter()
            figures = measure()
            kept = {"figures": json.loads(json.dumps(figures)), "seconds": time.perf_counter() - begin}
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(file, json.dumps(kept, indent=1) + "\n")
        self.seconds += kept["seconds"]
        return kept["figures"]


def main(
    here: Path,
    about: str | None,
    *,
    options: Any,
    quick: Any,
    settable: Iterable[str],
    measure: Callable[..., dict[str, Any]],
    page: Callable[[Any], str],
    script: str = "bench",
    roots: Iterable[str] = (),
    beside: str | None = None,
) -> None:
    """Measure, and write the record and README.md.

    Args:
        here: folder of the benchmark, recipes/NAME.
        about: shown by --help.
        options: a frozen dataclass; ``quick`` is the same for a smoke test.
        settable: names of its int fields that the command line may set.
        measure: (options, command) -> the record.
        page: the record as Markdown; with ``beside`` it takes all records of the folder by the names of their files.
        script: that was run: "bench" writes record.json, another one a file of its own name.
        roots: names of further arguments of ``measure`` that the command line may set: folders of this machine, which
            the record calls ROOT.
        beside: name of another record that the page tells about, if it is there.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test; needs --out")
    parser.add_argument("--out", type=Path, help="folder for the record and README.md (default: beside the script)")
    for name in settable:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"default {getattr(options, name)}")
    for name in roots:
        parser.add_argument(f"--{name}", type=Path, metavar="ROOT", help="folder of the data")
    given = {key: value for key, value in vars(parser.parse_args()).items() if value is not None}
    folders = {name: given.pop(name) for name in roots if name in given}
    is_quick, out = given.pop("quick"), given.pop("out", None)
    if is_quick and out is None:
        parser.error("--quick needs --out: its figures must not replace the record")
    command = " ".join([f"python -m recipes.{here.name}.{script}", *sys.argv[1:]])
    for root in folders.values():
        command = command.replace(str(root), "ROOT")
    record = measure(replace(quick if is_quick else options, **given), command, **folders)
    folder = here if out is None else out
    folder.mkdir(parents=True, exist_ok=True)
    name = "record" if script == "bench" else script
    write_atomic(folder / f"{name}.json", json.dumps(record, indent=1) + "\n")
    told: Any = record
    if beside is not None:
        other = folder / f"{beside}.json"
        told = {name: record} | ({beside: json.loads(other.read_text("utf-8"))} if other.is_file() else {})
    write_atomic(folder / "README.md", page(told))
    print(page(told))
