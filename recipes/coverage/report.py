"""Turn the record of the sweep into README.md: counts by outcome, by reason and by family.

python -m recipes.coverage.report
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORD, PAGE = HERE / "record.json", HERE / "README.md"

OUTCOMES = ("equal", "refused", "not built", "no 2-d convolution", "bug")
_KINDS = (
    (r"only one block", "it has only one block, so no bottom and top"),
    (r"goes back up", "its resolution goes back up, so it has no bottom and top"),
    (r"is a (\w+), which has no place", r"\1 has no place for a mask between the norm and its activation"),
    (r"normalisation .* as a function", "a normalisation is called as a function"),
    (r"convolution .* as a function", "a convolution is called as a function"),
    (r"mixes positions", "positions are averaged between a norm and the next activation"),
    (r"runs more than once", "a layer runs at several sizes, or with and without a norm"),
    (r"[Nn]o site is left", "no convolution in its bottom half can carry a mask"),
    (r"forward fails|forward failed", "it does not take a plain batch of images"),
)


def kind_of(reason: str) -> str:
    """The reason of a refusal without the names of this model's layers."""
    for pattern, kind in _KINDS:
        if match := re.search(pattern, reason):
            return match.expand(kind)
    return reason


def counts(record: dict[str, Any]) -> Counter[str]:
    """Outcome -> number of models; "in scope" = equal or refused."""
    found = Counter({outcome: 0 for outcome in OUTCOMES})
    found.update(model["outcome"] for model in record["models"].values())
    found["in scope"] = found["equal"] + found["refused"]
    return found


def share(record: dict[str, Any]) -> str:
    """Share of the models in scope that are equal, as it may be quoted."""
    found = counts(record)
    return f"{100 * found['equal'] / max(found['in scope'], 1):.1f} %"


def _halved(models: dict[str, Any]) -> list[str]:
    """A line on the models that ran in bfloat16."""
    names = [name for name, model in models.items() if model.get("dtype") == "bfloat16"]
    return [f"In bfloat16, because float32 did not fit into memory: {', '.join(names)}.", ""] if names else []


def render(record: dict[str, Any]) -> str:
    """The page."""
    models, found = record["models"], counts(record)
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        "# Coverage: every CNN of timm and torchvision",
        "",
        "<!-- Written by report.py from record.json. Do not edit. -->",
        "",
        "`sweep.py` makes each model defective (bottom half, p = 0.3) at a small image size and compares it, bit for",
        "bit, with the plain model under forward hooks that zero the same neurons (`oracle.py`, which shares no code",
        "with the package). All constant parameters and all batch statistics are set to random values first. It also",
        "checks that the output differs from the plain model's, that `verify` is content, that `undefectify` restores",
        "the outputs, and that the model passed in is unchanged.",
        "",
        f"**{found['equal']:,} of {found['in scope']:,} models ({share(record)}) are equal**; the others are refused",
        "by a named error. Nothing else happened." if not found["bug"] else f"by name, or fail ({found['bug']}).",
        f"{len(record['not_run'])} more, large ones, have not been run yet." if record["not_run"] else "",
        "",
        "| outcome | models |",
        "|---|---|",
        f"| equal | {found['equal']:,} |",
        f"| refused by a named error | {found['refused']:,} |",
        f"| out of scope: no Conv2d with a kernel > 1 | {found['no 2-d convolution']:,} |",
        f"| not built here | {found['not built']:,} |",
        f"| not run yet | {len(record['not_run']):,} |",
        f"| anything else | {found['bug']:,} |",
        "",
        *_halved(models),
        "## Why models are refused",
        "",
        "`bottom` needs two blocks and a resolution that only falls; the models without them still take block numbers",
        "and globs. The full message of each model is in `record.json`.",
        "",
        "| reason | error | models | families |",
        "|---|---|---|---|",
    ]
    refused = {name: model for name, model in models.items() if model["outcome"] == "refused"}
    kinds = Counter((kind_of(model["reason"]), model["error"]) for model in refused.values())
    for (kind, error), number in kinds.most_common():
        families = sorted({m["family"] for m in refused.values() if kind_of(m["reason"]) == kind})
        lines.append(f"| {kind} | {error} | {number} | {', '.join(families)} |")
    unbuilt = {name: model for name, model in models.items() if model["outcome"] == "not built"}
    if unbuilt:
        lines += ["", "## Not built", "", "| model | why |", "|---|---|"]
        lines += [f"| {name} | {model['reason']} |" for name, model in unbuilt.items()]
    if record["not_run"]:
        lines += [
            "",
            "## Not run yet",
            "",
            "Large models, for which there was no time. `sweep.py` goes on with them.",
            "",
        ]
        lines += [", ".join(record["not_run"])]
    lines += ["", "## By family", "", "| family | equal | refused | not built | no Conv2d |", "|---|---|---|---|---|"]
    for family in sorted({model["family"] for model in models.values()}):
        own = Counter(model["outcome"] for model in models.values() if model["family"] == family)
        row = [str(own[outcome] or "") for outcome in OUTCOMES[:4]]
        lines.append(f"| {family} | {' | '.join(row)} |")
    lines += ["", f"Made by `{record['command']}` with {versions}, seed {record['options']['seed']}, on"]
    lines += [f"{record['hardware']}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render(json.loads(RECORD.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"wrote {PAGE}")
