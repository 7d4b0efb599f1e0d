"""The page of the benchmark, from ``record.json`` (times) and ``distances.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["RIVAL_NAMES", "figures", "markdown"]

RIVAL_NAMES = ("foolbox", "art")
ATTACKS = ("BoundaryAttack", "HopSkipJump")

Line = tuple[str, float, float]


def figures(records: Mapping[str, Mapping[str, Any]]) -> list[Line]:
    """(what, value, limit) of every line that has a limit.

    Args:
        records: "record" (times), "distances", or both.
    """
    times, distances = records.get("record"), records.get("distances")
    return [*(_times(times) if times else []), *(_distances(distances) if distances else [])]


def _times(record: Mapping[str, Any]) -> list[Line]:
    lines = []
    for net in record["nets"].values():
        lines += [
            (f"{name}: time over its bare forwards; {net['network']}", cost["ratio"], 1.25)
            for name, cost in net["over_bare_forwards"].items()
        ]
        lines.append((f"BoundaryAttack: time over foolbox's; {net['network']}", net["time_over_foolbox"]["ratio"], 1.0))
    return [*lines, ("Transfer matrix: time over its bare model calls", record["transfer"]["ratio"], 1.10)]


def _distances(record: Mapping[str, Any]) -> list[Line]:
    lines = []
    first, second, last = (str(budget) for budget in record["options"]["budgets"])
    for net in record["nets"].values():
        where = net["network"]
        lines += [
            (
                f"BoundaryAttack: median distance at {budget} queries over the best of foolbox and ART; {where}",
                max(rival["of_medians"] for rival in net["BoundaryAttack"]["queries"][budget]["ours_over"].values()),
                1.05,
            )
            for budget in (first, second, last)
        ]
        hop = net["HopSkipJump"]["queries"][second]["median"]["ours"]
        walk = net["BoundaryAttack"]["queries"][last]["median"]["ours"]
        lines += [
            (
                f"{attack}: median distance at {budget} queries over the better of `coarse=1` and the default before "
                f"bandwidths competed; {where}",
                line["over_better"],
                1.03,
            )
            for attack in ATTACKS
            for budget, line in net[attack]["queries"].items()
            if "over_better" in line
        ]
        lines.append((f"HopSkipJump at {second} queries over BoundaryAttack at {last}; {where}", hop / walk, 1.0))
    return lines


def markdown(records: Mapping[str, Mapping[str, Any]]) -> str:
    """The records as a page.

    Args:
        records: as in :func:`figures`.
    """
    lines = ["# Decision-based attacks beside Foolbox's and ART's", "", *_made(records), ""]
    lines += ["| measured | value | at most | |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {value:.3f} | {limit} | {'holds' if value <= limit else 'MISSED'} |"
        for what, value, limit in figures(records)
    ]
    if distances := records.get("distances"):
        for net in distances["nets"].values():
            lines += ["", *_table(net)]
    lines += [
        "",
        "## Memory",
        "",
        "`python -m recipes.bench_attacks.memory` measures the peak memory of a transfer matrix over the size of its "
        "data set: `memory.json`.",
    ]
    return "\n".join([*lines, ""])


def _made(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["The networks were trained on scikit-learn's digits, enlarged, where nothing else is said."]
    if times := records.get("record"):
        machine, versions = times["hardware"], times["versions"]
        lines[0] += (
            f" Times: made by `{times['command']}` (seed {times['options']['seed']}, {times['seconds'] / 60:.0f} "
            f"minutes) on an idle machine, {machine['processor']}, {machine['threads']} threads, torch "
            f"{versions['torch']}, foolbox {versions['foolbox']}; all figures are in `record.json`."
        )
    if distances := records.get("distances"):
        versions = distances["versions"]
        lines[0] += (
            f" Distances: made by `{distances['command']}` (seed {distances['options']['seed']}), torch "
            f"{versions['torch']}, foolbox {versions['foolbox']}, adversarial-robustness-toolbox "
            f"{versions['adversarial-robustness-toolbox']}; all figures are in `distances.json`. They are medians over "
            "images of squared L2 distance / (C * H * W). Every tool starts from the same adversarial images and is "
            "asked for the same number of queries an image; of foolbox and ART the closest adversarial image asked "
            "about counts, of ours the one returned. Ratios to ART are on the images that ART attacked, one at a time."
        )
        lines += [
            "",
            "Read with care: the constants of our attacks (scouts, coarse noise, steps) were chosen on networks like "
            "these, mostly with seed 0; those of BoundaryAttack's coarse directions and calmer late steps with seed "
            "1 and on planes; the scouts, their starts, and centre and frequencies of HopSkipJump's probes with "
            "seeds 1 and 2 (seed 0 was measured in between: with another split of the scouts' queries, and with "
            "coarse noise in place of low frequencies; at 32 pixels a side both ended farther away, at 16 coarse "
            "noise was closer). Scouts try other starts with queries of the same budget; the attacks of foolbox and "
            "ART walk from the given start only. " + _prior(distances) + " The rows `coarse=1` are the attacks without "
            "it; no limit is set for those rows. With many queries all attacks end near the same floor, in different "
            "local minima of some images.",
        ]
    return lines


def _prior(record: Mapping[str, Any]) -> str:
    """What ours takes for granted about networks in this record."""
    if all("over_better" in line for net in record["nets"].values() for line in net["HopSkipJump"]["queries"].values()):
        return (
            "Ours also tries directions of low frequencies, which the attacks of foolbox and ART do not, and which "
            "digits enlarged from 8 x 8 favour; bandwidths compete for the queries of each sample."
        )
    return (
        "This record is older than bandwidths that compete: ours has the settings `coarse=2` (BoundaryAttack) and "
        "`coarse=None` (HopSkipJump), which were the default. The lead of both also rests on coarse noise (a quarter "
        "of BoundaryAttack's directions) and on low frequencies (all of HopSkipJump's first probes): a prior that "
        "the attacks of foolbox and ART do not have, and that digits enlarged from 8 x 8 favour; HopSkipJump's first "
        "probes have 8 x 8 frequencies, too."
    )


def _table(net: Mapping[str, Any]) -> list[str]:
    lines = [f"## {net['network']}", "", f"Clean accuracy {net['clean_accuracy']:.3f}.", ""]
    lines += [
        "| attack | queries | ours | foolbox | ART | ours / foolbox | ours / ART |",
        "|---|---|---|---|---|---|---|",
    ]
    for attack in ATTACKS:
        for budget, line in net[attack]["queries"].items():
            medians, over = line["median"], line["ours_over"]
            lines.append(_row(attack, budget, medians, over))
        # The rivals' figures are those of the row above: the same runs.
        plain = net[attack]["plain"]
        settings = ", ".join(f"{name}={value}" for name, value in plain["settings"].items())
        lines.append(_row(f"{attack}, `{settings}`", budget, {**medians, "ours": plain["median"]}, plain["ours_over"]))
    counts = net["BoundaryAttack"]["images"]
    lines += _bandwidths(net)
    return [*lines, "", f"{counts['ours']} images, {counts['art']} of them with ART."]


def _bandwidths(net: Mapping[str, Any]) -> list[str]:
    """Ours beside ours without low frequencies, and with a bet on them; nothing for a record without these."""
    rows = [
        f"| {attack} | {budget} | {line['median']['ours']:.2e} | {line['median']['plain']:.2e} | "
        f"{line['median']['bet']:.2e} | {line['over_better']:.3f} |"
        for attack in ATTACKS
        for budget, line in net[attack]["queries"].items()
        if "over_better" in line
    ]
    if not rows:
        return []
    head = "| attack | queries | bandwidths compete | `coarse=1` | default before | over the better |"
    return ["", head, "|---|---|---|---|---|---|", *rows]


def _row(attack: str, budget: str, medians: Mapping[str, float], over: Mapping[str, Any]) -> str:
    numbers = [f"{medians[tool]:.2e}" for tool in ("ours", *RIVAL_NAMES)]
    ratios = [f"{over[rival]['of_medians']:.3f}" for rival in RIVAL_NAMES]
    return "| " + " | ".join([attack, budget, *numbers, *ratios]) + " |"
