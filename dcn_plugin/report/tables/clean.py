"""The table of accuracies on clean images."""

from __future__ import annotations

from collections.abc import Sequence

from dcn_plugin.evaluate import Result, spread
from dcn_plugin.report.aggregate import clean_cells, data_labels
from dcn_plugin.report.tables.columns import DATA, joined
from dcn_plugin.support.number_format import counted, percent
from dcn_plugin.support.table import Table

__all__ = ["clean_table"]


def clean_table(results: Sequence[Result]) -> Table:
    """Every network on the images as they are: attacked sources first, then targets."""
    targets, images = clean_cells(results), data_labels(results)
    rows = []
    for (source, name, content), runs in _sources(results).items():
        shares = spread([(run.n_source_correct or 0) / run.n_total for run in runs])
        right = sum(run.n_source_correct or 0 for run in runs)
        rows.append(
            (
                f"{source} (attacked)",
                images[name, content],
                percent(shares),
                counted(right, sum(run.n_total for run in runs)),
            )
        )
    for cell in targets:
        right_of = counted(cell.total("n_clean_correct"), cell.total("n_total"))
        rows.append((cell.target, cell.data, percent(cell.clean), right_of))
    lost = [cell.target for cell in targets if all(run.n_clean_correct == 0 for run in cell.runs)]
    headers = ("network", DATA.header, "accuracy", "right / images")
    keep = [0, 1, 2, 3] if len({row[1] for row in rows}) > 1 else [0, 2, 3]
    return Table(
        "Clean accuracy",
        tuple(headers[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in rows),
        joined(_runs_note(results), f"Classifies no clean image correctly: {', '.join(lost)}." if lost else ""),
        "".join("llrr"[i] for i in keep),
    )


def _sources(results: Sequence[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """(source, images, their hash) -> a record a seed, for sources that are not measured as targets themselves."""
    records: dict[tuple[str, str, str], dict[int, Result]] = {}
    for result in results:
        if result.source is None or result.n_source_correct is None:
            continue
        # Every record of one seed carries the same counts of its source.
        records.setdefault((result.source, result.data, result.data_hash), {}).setdefault(result.seed, result)
    itself = {(r.source, r.data, r.data_hash) for r in results if r.relation == "same network" and r.source == r.target}
    return {key: list(runs.values()) for key, runs in records.items() if key not in itself}


def _runs_note(results: Sequence[Result]) -> str:
    seeds = sorted({result.seed for result in results})
    if len(seeds) < 2:
        return ""
    named = ", ".join(map(str, seeds))
    return (
        f"Mean ± standard deviation over {len(seeds)} runs (seeds {named}); counts are sums over them, here and below."
    )
