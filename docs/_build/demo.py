"""The demonstration of the start page: run as ``make demo`` runs it, shown as it came out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["demo_snippet", "run_demo"]

_SHOWN = ("report.html", "results.json", "transfer_accuracy.png")

def run_demo(out: Path) -> None:
    """Run ``defective demo`` into a folder and keep what the site shows of it.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "dcn_plugin.cli", "demo", "--no-progress", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"defective demo failed:\n{done.stderr[-4000:]}")
    for path in out.iterdir():
        if path.name not in _SHOWN:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def demo_snippet(folder: Path, *, link: str) -> str:
    """One table of the demo's records and where they come from, as Markdown.

    Args:
        folder: what :func:`run_demo` wrote.
        link: path of that folder's files, seen from the page.
    """
    file: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    transfers = [result for result in file["results"] if result["protocol"] == "transfer"]
    radii = sorted({_eps(result) for result in transfers})
    lines = ["| network | clean | " + " | ".join(f"eps {eps:g}" for eps in radii) + " |"]
    lines.append("|:--|--:|" + "--:|" * len(radii))
    for target in dict.fromkeys(result["target"] for result in transfers):
        own = [result for result in transfers if result["target"] == target]
        first = [result for result in own if _eps(result) == radii[0]]
        cells = [_share(first, "n_clean_correct")]
        cells += [_share([r for r in own if _eps(r) == eps], "n_correct") for eps in radii]
        lines.append(f"| {target} | {' | '.join(cells)} |")
    one = transfers[0]
    seeds = ", ".join(map(str, file["spec"]["seeds"]))
    lines += [
        "",
        f"Accuracy on all {one['n_total']} test images, in percent: mean and range over the seeds {seeds}. PGD with "
        f"{file['spec']['steps']} steps, made on another network; eps in units of [0, 1] images. Made by `defective demo` "
        f"when this site was built (torch {one['versions']['torch']}, {one['hardware']['processor']}): "
        f"[full report]({link}/report.html), [records]({link}/results.json).",
        "",
        f"![Line plot: accuracy of the standard and of three defective networks, falling with eps of the transferred PGD images]({link}/"
        "transfer_accuracy.png)",
    ]
    return "\n".join(lines) + "\n"


def _eps(result: dict[str, Any]) -> float:
    return float(result["attack_settings"]["eps"])


def _share(results: list[dict[str, Any]], count: str) -> str:
    shares = [100 * result[count] / result["n_total"] for result in results]
    return f"{sum(shares) / len(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})"
