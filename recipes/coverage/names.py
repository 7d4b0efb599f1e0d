"""Write the table of timm's models that get a ``defective_`` name from the record of the sweep.

    python -m recipes.coverage.names

A model gets a name if defectify takes it and it is a CNN: three places or more for masks in its bottom half (in a
transformer or mixer it is one or two, its patch embedding), and images of any size. All others have a reason.
"""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import timm

from dcn_plugin.support.atomic_file import write_atomic
from recipes.coverage.report import RECORD, kind_of

TABLE = Path(__file__).resolve().parents[2] / "dcn_plugin" / "models" / "timm_table.py"
FEWEST_SITES = 3
ROW = 104


def reason_against(name: str, model: dict[str, Any]) -> str | None:
    """Why a model of the record gets no name; None where it gets one.

    Args:
        name: as timm calls it.
        model: its outcome in the record.
    """
    if name.startswith("test_"):
        return "a network of timm's own tests"
    if model["outcome"] == "no 2-d convolution":
        return "it has no 2-D convolution with a kernel above 1"
    if model["outcome"] == "refused":
        return kind_of(model["reason"])
    if model["outcome"] != "equal":
        raise SystemExit(f"{name} is {model['outcome']!r} in the record; run the sweep again first")
    if model["sites"] < FEWEST_SITES:
        return "no CNN: it convolves in its stem or patch embedding only"
    if timm.get_pretrained_cfg(name).fixed_input_size:
        return "it attends over a grid of one size, so that it takes images of one size"
    return None


def sort_out(record: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Module of timm's -> names of its CNNs, the smallest first; reason -> names of the other models."""
    named: dict[str, list[str]] = defaultdict(list)
    unnamed: dict[str, list[str]] = defaultdict(list)
    models = {name.removeprefix("timm/"): m for name, m in record["models"].items() if name.startswith("timm/")}
    for name, model in sorted(models.items(), key=lambda item: (item[1]["params_m"], item[0])):
        reason = reason_against(name, model)
        if reason is None:
            named[model["family"].removeprefix("timm/")].append(name)
        else:
            unnamed[reason].append(name)
    return dict(sorted(named.items())), {reason: sorted(names) for reason, names in sorted(unnamed.items())}


def render(record: dict[str, Any]) -> str:
    """The module."""
    named, unnamed = sort_out(record)
    return "\n".join(
        [
            f'"""Every model of timm {record["versions"]["timm"]}: whether it has a defective version, and why not.',
            "",
            "Written by ``python -m recipes.coverage.names`` from the record of the sweep. Do not edit.",
            '"""',
            "",
            "from __future__ import annotations",
            "",
            "# fmt: off",
            "",
            '__all__ = ["NAMED", "UNNAMED"]',
            "",
            "NAMED: dict[str, tuple[str, ...]] = {",
            *_entries(named),
            "}",
            '"""Module of timm\'s -> its CNNs that defectify takes, the smallest first."""',
            "",
            "UNNAMED: dict[str, tuple[str, ...]] = {",
            *_entries(unnamed),
            "}",
            '"""Reason -> the models that have no ``defective_`` name for it."""',
            "",
        ]
    )


def _entries(table: dict[str, list[str]]) -> list[str]:
    lines = []
    for key, names in table.items():
        rows = textwrap.wrap(", ".join(f'"{name}"' for name in names), ROW)
        rows = [row.rstrip(",") for row in rows]
        lines += [f'    "{key}": (', *(f"        *({row}{'' if ', ' in row else ','})," for row in rows), "    ),"]
    return lines


if __name__ == "__main__":
    write_atomic(TABLE, render(json.loads(RECORD.read_text(encoding="utf-8"))).encode())
    print(f"wrote {TABLE}")
