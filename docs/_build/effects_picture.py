"""The picture above the paper map: every effect of the paper beside ours, as one tall column that a phone can show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from dcn_plugin.experiments import Verdict
from dcn_plugin.experiments.effects import Effect
from dcn_plugin.experiments.verdict import Word, signed

__all__ = ["COLOURS", "Axis", "effects_picture"]

COLOURS: Mapping[Word, str] = {
    "agrees": "#1f9d55",
    "weaker": "#c27c0e",
    "stronger": "#3b7dd8",
    "contradicts": "#d64545",
    "undecided": "#858585",
}
"""Of dot and interval: seen on white and on the dark theme's grey. The word stands beside each."""

# Lengths in units of the picture, which is as wide as a phone and grows with its place.
WIDTH, MARGIN, LINE, HEAD, TICKS = 360, 12, 34, 40, 18


class Axis:
    """Where an effect stands, from the left.

    Args:
        effects: of one unit, those of a record; the axis holds zero, their ends and the paper's.
    """

    def __init__(self, effects: Sequence[Effect]) -> None:
        values = [0.0]
        for effect in effects:
            values += [value for value in (effect.ours, effect.low, effect.high, effect.paper) if value is not None]
        finite = [value for value in values if math.isfinite(value)]
        self.low, self.high = min(finite), max(finite)

    def at(self, value: float) -> float:
        """The place of a value; what lies outside the axis stands at its end."""
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1)
        return round(MARGIN + share * (WIDTH - 2 * MARGIN), 1)


def effects_picture(verdicts: Mapping[str, Verdict]) -> str:
    """An HTML figure with an SVG picture; empty where no effect has a number of the paper.

    A line holds one effect: a diamond for the paper's, a dot and a 95 % interval for ours, in the colour of the verdict,
    whose word stands at the right end in the colour of all text.

    Args:
        verdicts: name of a table or figure -> its verdict, in the order in which they are drawn.
    """
    parts: list[str] = []
    top = 0.0
    drawn = 0
    for name, verdict in verdicts.items():
        effects = [effect for effect in verdict.effects if effect.paper is not None and effect in verdict.words]
        for unit in ("points", "factor"):
            lines = [effect for effect in effects if effect.unit == unit]
            if lines:
                parts += _record(name, verdict, lines, top)
                top += HEAD + LINE * len(lines) + TICKS
                drawn += len(lines)
    if not drawn:
        return ""
    title = f"{drawn} effects of the paper beside ours; the pages of the recipes hold the figures"
    picture = [
        f'<svg viewBox="0 0 {WIDTH} {top:g}" role="img" xmlns="http://www.w3.org/2000/svg" font-size="11" '
        'fill="currentColor" style="width: 100%; max-width: 40rem">',
        f"<title>{title}</title>",
        *parts,
        "</svg>",
    ]
    return "\n".join(["<figure>", *picture, f"<figcaption>{_CAPTION}</figcaption>", "</figure>"])


def _record(name: str, verdict: Verdict, effects: Sequence[Effect], top: float) -> Iterator[str]:
    axis = Axis(effects)
    zero, bottom = axis.at(0), top + HEAD + LINE * len(effects)
    yield f'<text x="0" y="{top + 22:g}" font-size="13" font-weight="bold">{escape(name)}: {verdict.headline}</text>'
    yield f'<line x1="{zero}" y1="{top + HEAD - 6:g}" x2="{zero}" y2="{bottom:g}" stroke="currentColor" opacity="0.35"/>'
    for number, effect in enumerate(effects):
        yield from _line(effect, verdict.words[effect], axis, top + HEAD + LINE * number)
    ends = {axis.low: "start", axis.high: "end"}
    for value, anchor in ends.items():
        text = signed(value, effects[0].unit)
        yield f'<text x="{axis.at(value)}" y="{bottom + 10:g}" text-anchor="{anchor}" opacity="0.8">{text}</text>'


def _line(effect: Effect, word: Word, axis: Axis, top: float) -> Iterator[str]:
    assert effect.paper is not None
    colour, y = COLOURS[word], top + 22
    ours, paper = axis.at(effect.ours), axis.at(effect.paper)
    yield "<g>"
    told = f"ours {signed(effect.ours, effect.unit)}, the paper's {signed(effect.paper, effect.unit)}: {word}"
    yield f"<title>{escape(f'{effect.row}, {effect.column}: {told}')}</title>"
    yield f'<text x="0" y="{top + 10:g}">{escape(f"{effect.row}, {effect.column}")}</text>'
    yield f'<text x="{WIDTH}" y="{top + 10:g}" text-anchor="end" font-weight="bold">{word}</text>'
    if math.isfinite(effect.low) and math.isfinite(effect.high):
        ends = f'x1="{axis.at(effect.low)}" y1="{y:g}" x2="{axis.at(effect.high)}" y2="{y:g}"'
        yield f'<line class="interval" {ends} stroke="{colour}" stroke-width="3" opacity="0.6"/>'
    corners = f"{paper},{y - 5:g} {paper + 5:g},{y:g} {paper},{y + 5:g} {paper - 5:g},{y:g}"
    yield f'<polygon class="paper" points="{corners}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    yield f'<circle class="ours" cx="{ours}" cy="{y:g}" r="4" fill="{colour}"/>'
    yield "</g>"


_CAPTION = (
    "Dot and bar: our effect and its 95 % interval. Diamond: the paper's effect. An effect is a row less the row it is "
    "held against, in percentage points, or their ratio (x) for distances; the grey line is no effect. Each record has "
    "an axis of its own, whose ends are written below it."
)
