"""The page of the recipe, written from its record: what is said in words follows from the figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dcn_plugin.evaluate import Result, ResultFile
from dcn_plugin.support.number_format import percent
from dcn_plugin.support.statistics import spread
from dcn_plugin.support.table import markdown

Figure = Callable[[Result], bool]
COLUMNS: dict[str, Figure] = {
    "FGSM": lambda r: r.source == "other" and r.steps == 1,
    "PGD": lambda r: r.source == "other" and r.steps != 1,
    "PGD from the standard network": lambda r: r.source == "itself" and r.steps != 1,
    "noise 16": lambda r: r.protocol == "gaussian" and _levels(r) == 16,
    "noise 32": lambda r: r.protocol == "gaussian" and _levels(r) == 32,
    "noise 64": lambda r: r.protocol == "gaussian" and _levels(r) == 64,
}
SHOWN = ("FGSM", "PGD", "PGD from the standard network", "noise 32")
CLEAN, GOAL = "clean", 0.01
SCRATCH, GRADUAL, EQUAL = "from scratch", "gradual, a third", "gradual"


def _levels(result: Result) -> int:
    return round(255 * (result.eps or 0))


def figures(record: ResultFile, row: str, column: str) -> dict[int, float]:
    """Seed -> clean accuracy, accuracy under noise, or the paper's defence rate, of a network."""
    shown: dict[int, float] = {}
    for result in record.results:
        if result.target != row:
            continue
        value = result.clean_accuracy if column == CLEAN else None
        if column != CLEAN and COLUMNS[column](result):
            value = result.accuracy_all if result.protocol == "gaussian" else result.defense_rate
        if value is not None:
            shown[result.seed] = value
    return shown


def difference(record: ResultFile, row: str, column: str) -> list[float]:
    """What a network has more than the one from scratch, seed by seed."""
    ours, scratch = figures(record, row, column), figures(record, SCRATCH, column)
    return [ours[seed] - scratch[seed] for seed in sorted(ours.keys() & scratch.keys())]


def page(record: ResultFile) -> str:
    """The record as Markdown."""
    spec: Any = record.spec
    rows = list(dict.fromkeys(result.target for result in record.results))
    table = [
        [row, str(spec["epochs"][row]), *(_cell(figures(record, row, column)) for column in (CLEAN, *COLUMNS))]
        for row in rows
    ]
    first, scale = record.results[0], spec["scale"]
    processors = ", ".join(dict.fromkeys(str(result.hardware["processor"]) for result in record.results))
    seeds = ", ".join(map(str, spec["seeds"]))
    lines = [
        "# From a trained network to a defective one",
        "",
        f"Made by `{record.run['command']}` (seeds {seeds}; torch {first.versions['torch']}, timm "
        f"{first.versions['timm']}; {processors}). {spec['data']}, {first.n_total} test images, "
        f"ResNet-18 at width {scale['width']}. Rows without a spread are of one seed. All counts are in `record.json`.",
        "",
        *_conclusions(record),
        "",
        "<!-- --8<-- [start:table] -->",
        *markdown(["network", "epochs", CLEAN, *COLUMNS], table, "lr" + "r" * (1 + len(COLUMNS))),
        "<!-- --8<-- [end:table] -->",
        "",
        f"`standard` has no masks and is what every fine-tuning starts from; the others are {spec['variant']} with the "
        "same masks for each seed. Epochs of a fine-tuning come on top of those of the standard network. Attacked "
        "columns are the paper's defence rates, in which only images count that the network has right when clean and "
        "that fool the source: FGSM and PGD at 16/255, rounded to 8 bits, from a standard network of another seed or "
        "from the standard network itself. Noise is the authors' clipped one, in grey levels; its columns are the "
        "share of all images that are right. "
        f"Fine-tunings have the training of the others with the highest learning rate {spec['lr']:g} in place of "
        f"{scale['training']['lr']:g}; norms were recalibrated on {spec['recalibrated_on']} training images. "
        f"A step of the schedule took {1000 * spec['schedule']['step_s']:.2f} ms (median), "
        f"{spec['schedule']['step_s'] / spec['schedule']['training_step_s']:.2%} of a training step.",
        "",
    ]
    return "\n".join(lines)


def _cell(values: dict[int, float]) -> str:
    return percent(spread(list(values.values()))) if values else ""


def _conclusions(record: ResultFile) -> list[str]:
    """Whether the goal is met, and whether fine-tuned networks are attacked more easily."""
    clean = difference(record, GRADUAL, CLEAN)
    mean = spread(clean).mean
    met = "It reaches" if mean >= -GOAL - 1e-9 else "It does not reach"
    lines = [
        f"Gradual fine-tuning for a third of the epochs has {_signed(clean)} of clean accuracy against training from "
        f"scratch. {met} the goal of no more than one point below."
    ]
    for row in (GRADUAL, EQUAL):
        differences = {column: difference(record, row, column) for column in SHOWN}
        parts = [f"{column} {_signed(values)}" for column, values in differences.items()]
        worse, better = (
            " and ".join(column for column in ("FGSM", "PGD") if differences[column] and same(differences[column]))
            for same in (lambda values: max(values) < 0, lambda values: min(values) > 0)
        )
        verdicts = []
        if worse:
            verdicts.append(
                f"with every seed it is attacked more easily under {worse}: it keeps more of what the attacker's "
                "network looks at"
            )
        if better:
            verdicts.append(f"with every seed it withstands {better} better")
        if not differences["FGSM"] and not differences["PGD"]:
            verdicts.append("no image counts, so that nothing is shown")
        verdict = "; ".join(verdicts) or "seeds differ in sign under FGSM and PGD, so that no difference is shown"
        lines += ["", f"Defence of *{row}* against *{SCRATCH}*: {', '.join(parts)}; {verdict}."]
    return lines


def _signed(differences: list[float]) -> str:
    if not differences:
        return "not measured"
    values = ", ".join(f"{100 * value:+.1f}" for value in differences)
    return f"{100 * spread(differences).mean:+.1f} points" + (f" ({values})" if len(differences) > 1 else "")
