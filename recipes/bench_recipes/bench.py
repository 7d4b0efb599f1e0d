"""What a recipe's second run costs: nothing is missing, so that it only finds that out and writes its table again.

Run it on an idle machine: ``.venv/bin/python recipes/bench_recipes/bench.py [--data ROOT]``. It writes ``record.json``
and ``README.md`` beside itself; ``--quick`` only prints. Every time is that of a whole process, from its start to its
end, of ``defective recipe run``. With ``--data``, the root of a CIFAR-10, the networks and attacks of scale smoke run
on that: what is to be seen is the cost of its files, not of its training.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dcn_plugin.experiments.recipe import load_recipe
from dcn_plugin.experiments.scales import Scale
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.environment import hardware, package_versions

HERE = Path(__file__).parent
RECIPE = "table05"
LIMIT = 5.0  # seconds
IMPORTS = "import torch, timm, torchvision"
# Of scale smoke, written into scale small, which is the one that reads CIFAR-10.
TINY = ("width", "train_images", "images", "cw_images", "max_steps", "cw_steps")


def measure(rounds: int, data: str | None) -> dict[str, dict[str, Any]]:
    """Seconds of the first run, of second runs, and of importing what they need, for every case."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cases = {"embedded digits": [RECIPE, "--scale", "smoke"]}
        if data is not None:
            cases["CIFAR-10"] = [str(tiny_recipe(root)), "--scale", "small", "--data", data]
        found = {}
        for name, arguments in cases.items():
            command = ["-m", "dcn_plugin.cli", "recipe", "run", *arguments, "--out", str(root / name)]
            first, _ = seconds_of(command)
            pairs = [(seconds_of(command), seconds_of(["-c", IMPORTS])) for _ in range(rounds)]
            for (_, told), _ in pairs:
                assert " 0 of " in told and "training" not in told, told
            again = [second for (second, _), _ in pairs]
            found[name] = {
                "files": count_files(data) if data is not None and "--data" in arguments else 0,
                "first_s": first,
                "second_s": statistics.median(again),
                "second_quartiles_s": statistics.quantiles(again, n=4),
                "imports_s": statistics.median(imports for _, (imports, _) in pairs),
            }
    return found


def tiny_recipe(folder: Path) -> Path:
    """The recipe with the sizes of scale smoke at scale small."""
    source = HERE.parent / RECIPE / "recipe.toml"
    smoke: Scale = load_recipe(RECIPE).scale("smoke")
    sizes = {key: getattr(smoke, key) for key in TINY} | {"epochs": smoke.training.epochs}
    path = folder / RECIPE / "recipe.toml"
    # [small] is its last table.
    text = source.read_text() + "".join(f"{key} = {value}\n" for key, value in sizes.items())
    write_atomic(path, text)
    made = load_recipe(path).scale("small")
    assert all(getattr(made, key) == getattr(smoke, key) for key in TINY)
    return path


def seconds_of(arguments: list[str]) -> tuple[float, str]:
    """Wall time of a Python process in seconds, and what it said on stderr."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=HERE.parents[1])
    elapsed = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(done.stderr)
    return elapsed, done.stderr


def count_files(data: str) -> int:
    return sum(len(names) for _, _, names in os.walk(data))


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = [
        "# What a recipe's second run costs",
        "",
        f"Made by `{record['command']}`; all figures are in `record.json`. `defective recipe run {RECIPE}` at the "
        "sizes of scale smoke, run again when nothing is missing: the time of the whole process, the median over "
        f"{record['rounds']} runs with its quartiles. Beside it that of a process which imports torch, timm and "
        "torchvision and ends.",
        "",
        f"Machine: {record['hardware']['processor']}, {record['hardware']['threads']} threads; "
        f"torch {record['versions']['torch']}, timm {record['versions']['timm']}.",
        "",
        "| images | files | first run, s | second run, s | quartiles | imports alone, s | at most, s | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in record["measured"].items():
        low, _, high = row["second_quartiles_s"]
        verdict = "holds" if row["second_s"] < LIMIT else "MISSED"
        lines.append(
            f"| {name} | {row['files']} | {row['first_s']:.1f} | {row['second_s']:.2f} | {low:.2f} .. {high:.2f} | "
            f"{row['imports_s']:.2f} | {LIMIT:g} | {verdict} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="second runs of each case (default 10)")
    parser.add_argument("--data", metavar="ROOT", help="root of a CIFAR-10, as 'defective recipe list' shows it")
    parser.add_argument("--quick", action="store_true", help="two rounds; print, write nothing")
    args = parser.parse_args()
    data = None if args.data is None else os.path.abspath(args.data)
    rounds = 2 if args.quick else args.rounds
    record = {
        "schema": 1,
        "command": "python recipes/bench_recipes/bench.py" + (" --data ROOT" if data is not None else ""),
        "seed": 0,
        "rounds": rounds,
        "versions": package_versions(),
        "hardware": hardware(),
        "measured": measure(rounds, data),
    }
    if not args.quick:
        write_atomic(HERE / "record.json", json.dumps(record, indent=1) + "\n")
        write_atomic(HERE / "README.md", markdown(record))
    print(markdown(record))


if __name__ == "__main__":
    main()
