"""The paper map: every table and figure, its recipe and command, and the paper's numbers beside ours.

Ours come from the committed ``recipes/<name>/record.json`` and from nowhere else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dcn_plugin.evaluate import Result
from dcn_plugin.experiments import RecipeSpec, Verdict, list_recipes, load_recipe, verdict_of
from dcn_plugin.experiments.comparison import Number
from dcn_plugin.experiments.datasets import DATA
from dcn_plugin.experiments.effects import Effect
from dcn_plugin.experiments.recipe import further_records
from dcn_plugin.experiments.scales import SCALES
from dcn_plugin.experiments.verdict import signed
from docs._build.effects_picture import effects_picture

__all__ = ["paper_pages"]

NO_RECORD = "no committed record"
_REPRODUCED = re.compile(r"^(Table|Figure|Appendix) (\w+(?:\.\d+)?)")
_GROUPS = ("Tables", "Figures and text", "Beyond the paper")


def paper_pages(root: Path) -> dict[str, str]:
    """All pages: file name -> Markdown; ``map.md`` is the overview.

    Args:
        root: the recipes folder.
    """
    specs = {name: load_recipe(name, root) for name in list_recipes(root)}
    records = {name: _record(root / name / "record.json") for name in specs}
    pages = {f"{name}.md": _page(spec, records[name], _further(root / name)) for name, spec in specs.items()}
    return {"map.md": _overview(specs, records)} | pages


def _record(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _further(folder: Path) -> dict[str, dict[str, Any]]:
    """Scale -> record, of those beside the one that the page is about."""
    return {scale: record for scale in further_records(folder) if (record := _record(folder / scale / "record.json"))}


def _overview(specs: Mapping[str, RecipeSpec], records: Mapping[str, dict[str, Any] | None]) -> str:
    lines = [_INTRO, f"{sum(r is not None for r in records.values())} of {len(specs)} recipes have a committed record.", ""]
    ordered = sorted(specs.items(), key=lambda item: _place(item[1]))
    verdicts = {
        f"{match[0]}, recipe {name}": _verdict(spec, record)
        for group in _GROUPS
        for name, spec in ordered
        if _group(spec) == group and (record := records[name]) and (match := _REPRODUCED.match(spec.reproduces))
    }
    lines += [effects_picture(verdicts), ""]
    for group in _GROUPS:
        heads = "| of the paper | what it shows | recipe | our numbers | verdict |"
        lines += [f"## {group}", "", heads, "|---|---|---|---|---|"]
        for name, spec in ordered:
            if _group(spec) == group:
                shown = f"| {_cell(spec.reproduces)} | {_cell(spec.title)} | [{name}]({name}.md) |"
                lines.append(f"{shown} {_state(records[name])} | {_word(spec, records[name])} |")
        lines.append("")
    lines += [_NOT_RERUN, "## What the paper leaves open", "", _OPEN]
    lines += [f"- [{name}]({name}.md): {text}" for name, spec in specs.items() for text in _own(spec, specs)]
    return "\n".join(lines) + "\n"


def _own(spec: RecipeSpec, specs: Mapping[str, RecipeSpec]) -> tuple[str, ...]:
    """What a recipe infers by itself: not what it has taken over from another one (``like``)."""
    like = specs.get(str(spec.raw.get("like", "")))
    return tuple(text for text in spec.inferred if like is None or text not in like.inferred)


def _group(spec: RecipeSpec) -> str:
    if spec.reproduces.startswith("Table"):
        return _GROUPS[0]
    return _GROUPS[1] if _REPRODUCED.match(spec.reproduces) else _GROUPS[2]


def _place(spec: RecipeSpec) -> tuple[str, int, str]:
    match = _REPRODUCED.match(spec.reproduces)
    number = match[2] if match else ""
    return (match[1] if match else "", int(number) if number.isdigit() else 0, spec.name)


def _state(record: dict[str, Any] | None) -> str:
    if record is None:
        return NO_RECORD
    spec = record["spec"]
    filled = sum(number["ours"] is not None for number in spec["numbers"])
    return f"scale {spec['scale']['name']}, {filled} numbers"


def _word(spec: RecipeSpec, record: Mapping[str, Any] | None) -> str:
    return "" if record is None else _verdict(spec, record).short


def _verdict(spec: RecipeSpec, record: Mapping[str, Any]) -> Verdict:
    numbers = [Number(**number) for number in record["spec"]["numbers"]]
    return verdict_of(spec, numbers, map(Result.from_dict, record["results"]))


def _page(spec: RecipeSpec, record: dict[str, Any] | None, further: Mapping[str, dict[str, Any]]) -> str:
    title = spec.title if spec.title.endswith("?") else f"{spec.title}."
    lines = [f"# {spec.reproduces}", "", f"{title} Back to the [paper map](map.md).", "", *_commands(spec)]
    if record is None:
        lines += ["## Numbers", "", f"**Ours: {NO_RECORD}.** The command above makes one.", ""]
        lines += [*_paper_table(spec), *_paper_source(spec)]
    else:
        lines += [*_verdict_lines(spec, _verdict(spec, record)), "## Numbers", ""]
        lines += [*_both_table(record), *_paper_source(spec), *_provenance(spec, record, f"{spec.name}.json")]
        lines += _by_scale(spec, record, further)
    if spec.inferred or spec.skip:
        lines += ["## What to know", ""]
        lines += [f"- Inferred, since neither paper nor code states it: {text}" for text in spec.inferred]
        lines += [f"- Row of the paper left out: {label} ({why})." for label, why in spec.skip.items()]
        lines.append("")
    return "\n".join(lines)


def _commands(spec: RecipeSpec) -> Iterator[str]:
    yield from ("```sh", f"defective recipe run {spec.name} --scale smoke")
    for scale in SCALES[1:]:
        yield f"defective recipe run {spec.name} --scale {scale} --data ROOT"
    yield from ("```", "", "| scale | data | networks | epochs | test images |", "|---|---|---|---|---|")
    for name in SCALES:
        scale, data = spec.scale(name), spec.data_at(name)
        width = f"{len(spec.rows_at(name))} rows, width {scale.width}"
        images = "all" if scale.images is None else f"{scale.images:,}"
        yield f"| {name} | {data} | {width} | {scale.training.epochs} | {images} |"
    layouts = dict.fromkeys(text for name in SCALES if (text := DATA[spec.data_at(name)].layout))
    yield from ("", "ROOT is the data set's folder:", "", *(f"- {_cell(text)}" for text in layouts), "")


def _paper_table(spec: RecipeSpec) -> Iterator[str]:
    table = spec.numbers
    if table is None:
        if spec.stated:
            columns = list(dict.fromkeys(column for row in spec.stated.values() for column in row))
            yield from _table(["the paper's text states", *columns], (
                [row, *(_number(values.get(column)) for column in columns)] for row, values in spec.stated.items()
            ))
        else:
            yield from ("The paper gives no numbers for it.", "")
        return
    heads = [f"{column}{'*' if column in table.inferred_columns else ''}" for column in table.columns]
    only = spec.raw.get("only")
    rows = [row for row in table.rows if only is None or row.label in only]
    yield from _table(["the paper's", *heads], (
        [f"{row.label}{'*' if row.inferred else ''}", *(_number(row.values.get(c)) for c in table.columns)]
        for row in rows
    ))


def _paper_source(spec: RecipeSpec) -> Iterator[str]:
    if spec.numbers is not None:
        yield from (f"Source of the paper's numbers: arXiv 1911.08432; {spec.numbers.comment}", "")
        if spec.numbers.inferred_columns or any(row.inferred for row in spec.numbers.rows):
            yield from ("\\* our reading of a label that the paper's text lost.", "")


def _verdict_lines(spec: RecipeSpec, verdict: Verdict) -> Iterator[str]:
    yield from ("## Verdict", "", _cell(verdict.sentence), "")
    if spec.finding is not None:
        yield from (f"Likely reason: {spec.finding.reason}", "")
    if not verdict.effects:
        return
    yield from (_EFFECTS, "")
    columns = list(dict.fromkeys(one.column for one in verdict.effects))
    by_place = {(one.row, one.column): one for one in verdict.effects}
    yield from _table(["effect", *columns], (
        [f"{row} against {against}", *(_effect(verdict, by_place.get((row, column))) for column in columns)]
        for row, against in dict.fromkeys((one.row, one.against) for one in verdict.effects)
    ))


def _effect(verdict: Verdict, one: Effect | None, *, paper: bool = True) -> str:
    if one is None:
        return ""
    known = [] if math.isinf(one.high - one.low) else [f"{_bare(one.low, one)} to {_bare(one.high, one)}"]
    known += [] if one.paper is None or not paper else [f"paper {_bare(one.paper, one)}"]
    word = verdict.words.get(one)
    return _bare(one.ours, one) + (f" ({'; '.join(known)})" if known else "") + (f": {word}" if word else "")


def _bare(value: float, one: Effect) -> str:
    return signed(value, one.unit).removesuffix(" points")


def _both_table(record: dict[str, Any]) -> Iterator[str]:
    """In each cell ours, and in brackets the paper's."""
    numbers = record["spec"]["numbers"]
    columns = list(dict.fromkeys(number["column"] for number in numbers))
    by_place = {(number["row"], number["column"]): number for number in numbers}
    yield from ("In each cell: ours (the paper's).", "")
    yield from _table(["ours (paper's)", *columns], (
        [row, *(_both(by_place.get((row, column))) for column in columns)]
        for row in dict.fromkeys(number["row"] for number in numbers)
    ))


def _both(number: Mapping[str, Any] | None) -> str:
    if number is None:
        return ""
    ours = "–" if number["ours"] is None else _number(number["ours"])
    if number["spread"] is not None:
        ours += f" ± {_number(number['spread'])}"
    return ours if number["paper"] is None else f"{ours} ({_number(number['paper'])})"


def _by_scale(spec: RecipeSpec, record: dict[str, Any], further: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """The effects of all records side by side."""
    if not further:
        return
    yield from ("## By scale", "", _BY_SCALE, "")
    records = [record, *further.values()]
    verdicts = [_verdict(spec, each) for each in records]
    effects = [{(one.row, one.against, one.column): one for one in verdict.effects} for verdict in verdicts]
    paper = {place: one.paper for known in effects for place, one in known.items()}
    yield from _table(["effect", "column", *map(_size, records), "paper"], (
        [
            f"{row} against {against}",
            column,
            *(_effect(verdict, known.get((row, against, column)), paper=False) for verdict, known in zip(verdicts, effects)),
            "" if value is None else _bare(value, next(known[place] for known in effects if place in known)),
        ]
        for place, value in paper.items()
        for row, against, column in [place]
    ))
    for scale, other in further.items():
        yield from (f"### Scale {scale}", "", _cell(_verdict(spec, other).sentence), "")
        yield from _provenance(spec, other, f"{spec.name}-{scale}.json")


def _size(record: Mapping[str, Any]) -> str:
    scale, seeds = record["spec"]["scale"], len(record["spec"]["seeds"])
    size = f"{scale['name']}: width {scale['width']}, {scale['training']['epochs']} epochs"
    return f"{size}, {seeds} seed{'' if seeds == 1 else 's'}"


def _provenance(spec: RecipeSpec, record: dict[str, Any], file: str) -> Iterator[str]:
    own, run = record["spec"], record["run"]
    yield from (str(own["caveats"]), "")
    yield f"- Command: `{run.get('command') or f'defective recipe run {spec.name} --scale ' + own['scale']['name']}`"
    yield f"- Data: {own['data']}"
    yield f"- Seeds: {', '.join(map(str, own['seeds']))}"
    yield f"- Versions: {', '.join(f'{name} {version}' for name, version in own['versions'].items())}"
    yield f"- Machine: {', '.join(f'{name}: {value}' for name, value in own['hardware'].items())}"
    yield f"- Finished: {run.get('finished', 'not stated')}"
    yield from (f"- Record: [record.json](records/{file})", "")


def _table(heads: list[str], rows: Any) -> Iterator[str]:
    yield "| " + " | ".join(map(_cell, heads)) + " |"
    yield "|" + "|".join([":--", *["--:"] * (len(heads) - 1)]) + "|"
    yield from ("| " + " | ".join(map(_cell, row)) + " |" for row in rows)
    yield ""


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")


_INTRO = """# Paper map

Every table and every quantitative figure of *Defective Convolutional Networks* (arXiv 1911.08432) is a recipe, a TOML file
in [`recipes/`](../howto/recipes.md). A recipe trains the networks, measures them, and writes a record with command, seed,
versions, machine and counts. Our numbers on these pages are read from the records that are committed, when the site is built.
The paper's numbers are shown with or without one.

A recipe has four scales: `smoke` (embedded digits, seconds: does it run?), `small` (two CPU cores, hours: smaller networks,
fewer epochs), `medium` (twice the width, about twice the epochs) and `full` (the paper's networks and schedule). Numbers of another scale than `full` are no attempt to hit the
paper's. What is compared is the effect, a row less its standard row: the column *verdict* says whether ours agrees with the
paper's, is weaker or stronger, contradicts it, or is undecided by what was measured. The pages hold the figures and the likely
reason.
"""

_EFFECTS = """An effect is a number less that of the row it is held against, in percentage points; of distances it is the
ratio (x). In brackets: its 95 % interval, and the effect of the paper's numbers. With one seed the interval is that of the
images, and says nothing about other training runs. The rule for the words stands at the top of `dcn_plugin/experiments/verdict.py`."""

_BY_SCALE = """The same effects in the records of all scales: whether one shrinks or grows as networks become wider and are trained
for longer. In brackets: its 95 % interval."""

_NOT_RERUN = """## Figures without numbers

Figures 1 and 2 show examples of shuffled and stylised images; table 1 measures on such images. Figures 3, 6 and 7 show
adversarial images: `figure03` makes such pictures, and `appendix_b` the pairs of the user study. Figures 8 to 13
draw the six networks ([their parameter counts and masks](../howto/paper-networks.md)); figure 14 shows training curves.
"""

_OPEN = """Neither the paper's text nor the released code settles these points; each recipe says how it reads them. The user
study of appendix B asked people; the recipe prepares the pairs and asks nobody.
"""
