"""Our numbers beside the paper's: one entry a cell of its table, and the table as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dcn_plugin.evaluate import Result
from dcn_plugin.experiments.measurements import Entry
from dcn_plugin.experiments.paper_tables import CLEAN
from dcn_plugin.experiments.recipe import RecipeSpec, is_rate
from dcn_plugin.experiments.scales import PAPER_WIDTH, Scale
from dcn_plugin.support.table import markdown

__all__ = ["Number", "compare", "to_markdown"]


@dataclass(frozen=True)
class Number:
    """One number of a table.

    Args:
        row: its row.
        column: its column.
        figure: which figure of the records it is: shares are in percent.
        ours: mean over the seeds, None where no image counts.
        seeds: how many seeds it is the mean of.
        spread: standard deviation over the seeds, None for one.
        counted: images of the denominator, over all seeds.
        paper: the paper's number.
        difference: ours - paper; None where ours is of another data set.
        inferred: the paper's row or column is labelled by our reading, or a number that only its text states.
        scale: of our run; as are the next two.
        width: channels of a network's first stage.
        epochs: of the training.
    """

    row: str
    column: str
    figure: str
    ours: float | None
    seeds: int
    spread: float | None
    counted: int
    paper: float | None
    difference: float | None
    inferred: bool
    scale: str
    width: int
    epochs: int

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def compare(spec: RecipeSpec, scale: Scale, entries: Iterable[Entry]) -> list[Number]:
    """Put every number beside the paper's, in the order of the table; clean accuracies last."""
    grouped: dict[tuple[str, str, str], list[Result]] = {}
    clean: dict[tuple[str, str, str], list[Result]] = {}
    for entry in entries:
        grouped.setdefault((entry.row, entry.column, entry.figure), []).append(entry.result)
        results = clean.setdefault((entry.row, CLEAN, "clean_accuracy"), [])
        # Cells on fewer images say less about the same thing.
        same = [result for result in results if result.seed == entry.result.seed]
        if entry.result.n_clean_correct is not None and not same:
            results.append(entry.result)
        elif same and entry.result.n_total > same[0].n_total and entry.result.n_clean_correct is not None:
            results[results.index(same[0])] = entry.result
    order = {label: place for place, label in enumerate(spec.rows)}
    keys = sorted(grouped, key=lambda key: order[key[0]]) + sorted(clean, key=lambda key: order[key[0]])
    return [_number(spec, scale, key, (grouped | clean)[key]) for key in keys if (grouped | clean)[key]]


def _number(spec: RecipeSpec, scale: Scale, key: tuple[str, str, str], results: Sequence[Result]) -> Number:
    row, column, figure = key
    factor = 100 if is_rate(figure) else 1
    values = [value * factor for result in results if (value := _figure(result, figure)) is not None]
    ours = statistics.fmean(values) if values else None
    paper, inferred = _paper(spec, row, column)
    other_data = scale.data not in (None, spec.data)
    return Number(
        row=row,
        column=column,
        figure=figure,
        ours=ours,
        seeds=len(values),
        spread=statistics.stdev(values) if len(values) > 1 else None,
        counted=sum(
            result.n_total if figure in ("accuracy_all", "clean_accuracy") else result.n_counted for result in results
        ),
        paper=paper,
        difference=None if ours is None or paper is None or other_data else ours - paper,
        inferred=inferred,
        scale=scale.name,
        width=scale.width,
        epochs=scale.training.epochs,
    )


def _figure(result: Result, figure: str) -> float | None:
    value = getattr(result, figure) if is_rate(figure) else result.figures.get(figure)
    return None if value is None else float(value)


def _paper(spec: RecipeSpec, row: str, column: str) -> tuple[float | None, bool]:
    stated = spec.stated.get(row, {}).get(column)
    if stated is not None:
        return float(stated), True
    paper_row = None if spec.numbers is None else spec.numbers.row(row)
    if paper_row is None or spec.numbers is None:
        return None, False
    return paper_row.values.get(column), paper_row.inferred or column in spec.numbers.inferred_columns


def to_markdown(
    spec: RecipeSpec, scale: Scale, numbers: Sequence[Number], *, verdict: str = "", facts: Mapping[str, str]
) -> str:
    """The table: in each cell ours, and in brackets the paper's and the difference.

    Args:
        spec: the recipe.
        scale: of the run.
        numbers: of the table.
        verdict: a sentence that sums them up, see :func:`dcn_plugin.experiments.verdict_of`.
        facts: what else has to be known, by name.
    """
    columns = list(dict.fromkeys(number.column for number in numbers))
    by_place = {(number.row, number.column): number for number in numbers}
    marked = {number.row for number in numbers if number.inferred and _row_inferred(spec, number.row)}
    heads = [f"{column}{'*' if _column_inferred(spec, column) else ''}" for column in columns]
    lines = [f"# {spec.name}: {spec.title}", "", f"{spec.reproduces}. In each cell: ours (paper's, difference)."]
    rows = [
        [f"{row}{'*' if row in marked else ''}", *(_cell(by_place.get((row, column))) for column in columns)]
        for row in dict.fromkeys(number.row for number in numbers)
    ]
    for label, why in spec.skip.items():
        paper = None if spec.numbers is None else spec.numbers.row(label)
        shown = [f"({paper.values[c]:g})" if paper and paper.values.get(c) is not None else "" for c in columns]
        rows.append([f"{label}: {why}", *shown])
    lines += ["", *markdown(["", *heads], rows)]
    lines += ["", verdict] if verdict else []
    lines += ["", caveats(spec, scale)]
    if any(number.inferred for number in numbers):
        lines += ["", "\\* inferred: the paper's text lost the label, or states the number outside of its tables."]
    if spec.inferred:
        lines += ["", "What neither paper nor code states:", "", *(f"- {text}" for text in spec.inferred)]
    lines += ["", *(f"- {key}: {value}" for key, value in facts.items())]
    return "\n".join(lines) + "\n"


def caveats(spec: RecipeSpec, scale: Scale) -> str:
    """What has to be known before numbers of a scale are compared with the paper's."""
    training = scale.training
    run = f"Scale {scale.name}: width {scale.width}, {training.epochs} epochs, last epoch"
    images = "all test images" if scale.images is None else f"{scale.images} test images"
    if scale.name == "full":
        return f"{run}, {images}. The authors kept the best epoch on the test set, and named no seeds."
    what = " on another data set" if scale.data not in (None, spec.data) else ""
    smoke = " It shows that the recipe runs, and nothing else." if scale.name == "smoke" else ""
    return (
        f"{run}, {images}. The paper's networks have width {PAPER_WIDTH}, trained for up to 350 epochs: these numbers "
        f"come from smaller networks{what}, and the difference to the paper's is no failure to reproduce them.{smoke}"
    )


def _row_inferred(spec: RecipeSpec, row: str) -> bool:
    paper_row = None if spec.numbers is None else spec.numbers.row(row)
    return paper_row is not None and paper_row.inferred


def _column_inferred(spec: RecipeSpec, column: str) -> bool:
    return spec.numbers is not None and column in spec.numbers.inferred_columns


def _cell(number: Number | None) -> str:
    if number is None:
        return ""
    percent = is_rate(number.figure)
    ours = _shown(number.ours, percent) + ("" if number.spread is None else f" ± {_shown(number.spread, percent)}")
    if number.paper is None:
        return ours
    difference = "" if number.difference is None else f", {_signed(number.difference, percent)}"
    return f"{ours} ({_shown(number.paper, percent)}{difference})"


def _shown(value: float | None, percent: bool) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if percent else f"{value:.2g}"


def _signed(value: float, percent: bool) -> str:
    return f"{value:+.2f}" if percent else f"{value:+.2g}"
