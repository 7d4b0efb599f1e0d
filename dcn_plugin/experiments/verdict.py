"""Does a record agree with the paper? One word an effect, one a record, and a sentence with the figures.

The rule, for an effect of ours with its 95 % interval, and the paper's effect:

1. The paper's effect has noise of its own, :data:`PAPER_NOISE` to either side. Where our whole interval lies within
   that, ours *agrees*.
2. Where our interval meets it, ours agrees too, unless our interval holds zero: then our noise cannot tell the paper's
   effect from none, and it is *undecided*. A handful of images ends here, whatever they show.
3. Our interval excludes the paper's effect. Ours *contradicts* it if it has the other sign and excludes zero.
4. Ours agrees if it excludes zero and is the paper's up to :data:`FACTOR`: networks of another width and training are
   not expected to hit it.
5. Otherwise it is *weaker* or *stronger* in the paper's direction. None at all, where the paper has one, is weaker.

A record agrees, or is another of these, if more than half of its decided effects are; else it is *mixed*. It is
undecided if no more than one effect in ten is decided: of twenty effects that do not exist, one lies beyond its 95 %
interval by chance. What the clean accuracy loses is told apart and does not count.

Sources: an interval within a margin as a test of equivalence: Schuirmann 1987, "A comparison of the two one-sided tests
procedure"; the intervals: :mod:`dcn_plugin.experiments.effects`. The factor is a choice.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from dcn_plugin.evaluate import Result
from dcn_plugin.experiments.commentary import Claim, Finding
from dcn_plugin.experiments.comparison import Number
from dcn_plugin.experiments.effects import Effect, Unit, effects_of
from dcn_plugin.experiments.paper_tables import CLEAN
from dcn_plugin.experiments.recipe import RecipeSpec

__all__ = [
    "FACTOR",
    "PAPER_NOISE",
    "Headline",
    "Verdict",
    "Word",
    "headline",
    "judge",
    "judge_claim",
    "signed",
    "verdict_of",
]

Word = Literal["agrees", "weaker", "stronger", "contradicts", "undecided"]
Headline = Literal["agrees", "weaker", "stronger", "contradicts", "undecided", "mixed", "not compared"]

FACTOR = 1.5
"""An effect is the paper's up to this factor."""

PAPER_NOISE: Mapping[Unit, float] = {"points": 2.0, "factor": 0.0}
"""Noise of the paper's effects, to either side. The 95 % interval of a difference of two shares of its 5,000 images is
at most 1.96 * sqrt(2 * 0.25 / 5000) = 0.02. The paper gives nothing from which that of its median distances follows."""

_WORDS: tuple[Word, ...] = get_args(Word)
_UNITS: tuple[Unit, ...] = get_args(Unit)
_TOLD: Mapping[Word, tuple[str, str]] = {
    "agrees": ("agrees", "agree"),
    "weaker": ("is weaker", "are weaker"),
    "stronger": ("is stronger", "are stronger"),
    "contradicts": ("contradicts", "contradict"),
    "undecided": ("is undecided", "are undecided"),
}
_HEADS: Mapping[Headline, str] = {
    "agrees": "Agrees with the paper",
    "weaker": "Weaker than the paper",
    "stronger": "Stronger than the paper",
    "contradicts": "Contradicts the paper",
    "undecided": "Undecided",
    "mixed": "Mixed",
    "not compared": "Not compared",
}
# Up to this many effects without a number of the paper are told one by one.
_SINGLE = 4


@dataclass(frozen=True)
class Verdict:
    """What a record says about the paper.

    Args:
        headline: the record in a word.
        sentence: with the figures.
        effects: all effects of the record, in the order of its table.
        words: of the effects that have one: those with a number of the paper, or under a claim in words.
    """

    headline: Headline
    sentence: str
    effects: tuple[Effect, ...] = ()
    words: Mapping[Effect, Word] = field(default_factory=dict)

    @property
    def short(self) -> str:
        """The word, and how many effects have which: "weaker (weaker 9, agrees 4)"."""
        counts = _tally(word for effect, word in self.words.items() if effect.column != CLEAN)
        return self.headline + (f" ({', '.join(f'{word} {n}' for word, n in counts.items())})" if counts else "")


def judge(ours: float, low: float, high: float, paper: float, *, noise: float = 0.0) -> Word:
    """Hold an effect against the paper's; the rule is at the top of this file.

    Args:
        ours: the effect.
        low: lower end of its 95 % interval.
        high: upper end.
        paper: the paper's effect, in the same unit.
        noise: of the paper's effect, to either side.
    """
    if paper - noise <= low and high <= paper + noise:
        return "agrees"
    nothing = low <= 0 <= high
    if low <= paper + noise and paper - noise <= high:
        return "undecided" if nothing else "agrees"
    along = _along(ours, paper)
    if along < 0 and not nothing:
        return "contradicts"
    if not nothing and abs(paper) / FACTOR <= along <= abs(paper) * FACTOR:
        return "agrees"
    return "weaker" if along < abs(paper) else "stronger"


def judge_claim(low: float, high: float, claim: Claim) -> Word:
    """Hold an effect against a direction that the paper states in words: agrees, contradicts, or undecided.

    Args:
        low: lower end of its 95 % interval.
        high: upper end.
        claim: the direction.
    """
    if low <= 0 <= high:
        return "undecided"
    return "agrees" if (low > 0) == (claim == "higher") else "contradicts"


def headline(words: Sequence[Word]) -> Headline:
    """The word of a record from those of its effects; the rule is at the top of this file."""
    counts = Counter(words)
    decided = len(words) - counts.pop("undecided", 0)
    if not words:
        return "not compared"
    if 10 * decided <= len(words):
        return "undecided"
    word, most = counts.most_common(1)[0]
    return word if 2 * most > decided else "mixed"


def verdict_of(spec: RecipeSpec, numbers: Sequence[Number], results: Iterable[Result]) -> Verdict:
    """The verdict on a record.

    Args:
        spec: its recipe, with the finding beside it if there is one.
        numbers: those of the record.
        results: its results.
    """
    if any(number.scale == "smoke" for number in numbers):
        return Verdict("not compared", "Not compared: scale smoke shows that the recipe runs, and nothing else.")
    effects = tuple(effects_of(spec, numbers, results))
    compared = [effect for effect in effects if effect.column != CLEAN]
    claimed = spec.finding if all(effect.paper is None for effect in compared) else None
    words: dict[Effect, Word] = {}
    for effect in effects:
        if effect.paper is not None:
            words[effect] = judge(effect.ours, effect.low, effect.high, effect.paper, noise=PAPER_NOISE[effect.unit])
        elif claimed is not None and claimed.claim is not None and effect.column != CLEAN:
            words[effect] = judge_claim(effect.low, effect.high, claimed.claim)
    judged = [effect for effect in compared if effect in words]
    word = headline([words[effect] for effect in judged])
    left = [words[effect] for effect in judged].count("undecided")
    partly = " in what is decided" if word != "undecided" and 2 * left > len(judged) else ""
    head = f"{_HEADS[word]}{partly} ({_where(numbers)})"
    if not compared:
        parts = [f"{head}: no row has a standard one beside it."]
    elif not judged:
        parts = [f"{head}: the paper gives no numbers for it; {_by_row(compared)}{_noise(compared)}."]
    elif claimed is not None:
        parts = [f"{head}: {_claimed(claimed, judged, words)}."]
    else:
        parts = [
            f"{head}: {_compared(judged, words)}.",
            *_not_in_the_paper([effect for effect in compared if effect not in words]),
        ]
    return Verdict(word, " ".join([*parts, *_clean(effects)]), effects, words)


def signed(value: float, unit: Unit) -> str:
    """An effect as people read it: "+2.5 points", or "x 4.80"."""
    # The sum with zero makes -0.0 what it is.
    return f"{round(value, 1) + 0.0:+.1f} points" if unit == "points" else f"x {math.exp(value):.2f}"


def _compared(effects: Sequence[Effect], words: Mapping[Effect, Word]) -> str:
    same = sum(effect.ours * (effect.paper or 0) > 0 for effect in effects)
    parts = [_counted(effects, words), f"{same} of {len(effects)} have the paper's sign"]
    for unit in _UNITS:
        part = [effect for effect in effects if effect.unit == unit]
        if part:
            ours = statistics.median(_along(effect.ours, effect.paper or 0) for effect in part)
            paper = statistics.median(abs(effect.paper or 0) for effect in part)
            median = f"median in the paper's direction {signed(ours, unit)}, the paper's {signed(paper, unit)}"
            parts.append(median + _noise(part))
    inferred = sum(effect.inferred for effect in effects)
    parts += [f"{inferred} of {len(effects)} under a label or setting that we inferred"] if inferred else []
    return "; ".join(parts)


def _claimed(finding: Finding, effects: Sequence[Effect], words: Mapping[Effect, Word]) -> str:
    claim = f"the paper says in words that {finding.words.rstrip('.')}"
    return f"{claim}; {_counted(effects, words)}; {_by_row(effects)}{_noise(effects)}"


def _not_in_the_paper(effects: Sequence[Effect]) -> list[str]:
    if not effects:
        return []
    if len(effects) > _SINGLE:
        return [f"Not in the paper's table: {_by_row(effects)}."]
    sentences = (
        f"{effect.column}, {effect.row} {signed(effect.ours, effect.unit)}{_interval(effect)}" for effect in effects
    )
    return [f"Not in the paper's table: {'; '.join(sentences)}."]


def _clean(effects: Sequence[Effect]) -> list[str]:
    clean = [effect for effect in effects if effect.column == CLEAN]
    if not clean:
        return []
    text = f"Clean accuracy: {statistics.median(effect.ours for effect in clean):+.1f} points in the median"
    papers = [effect.paper for effect in clean if effect.paper is not None]
    return [f"{text}, the paper's {statistics.median(papers):+.1f}." if papers else f"{text}."]


def _by_row(effects: Sequence[Effect]) -> str:
    """The median effect of every row, and its smallest and largest."""
    rows: dict[tuple[str, Unit], list[float]] = {}
    for effect in effects:
        rows.setdefault((effect.row, effect.unit), []).append(effect.ours)
    texts = []
    for (row, unit), values in rows.items():
        reach = f" ({_bare(min(values), unit)} to {_bare(max(values), unit)})" if len(values) > 1 else ""
        texts.append(f"{row} {signed(statistics.median(values), unit)}{reach}")
    return f"median over the columns: {', '.join(texts)}"


def _noise(effects: Sequence[Effect]) -> str:
    """How wide our intervals are."""
    halves = [(effect.high - effect.low) / 2 for effect in effects if effect.unit == "points"]
    return f" (95 % intervals ±{statistics.median(halves):.1f} in the median)" if halves else ""


def _interval(effect: Effect) -> str:
    if math.isinf(effect.high - effect.low):
        return ""
    return f" ({_bare(effect.low, effect.unit)} to {_bare(effect.high, effect.unit)})"


def _bare(value: float, unit: Unit) -> str:
    return signed(value, unit).removesuffix(" points")


def _where(numbers: Sequence[Number]) -> str:
    seeds = max((number.seeds for number in numbers), default=0)
    other_data = any(
        number.paper is not None and number.ours is not None and number.difference is None for number in numbers
    )
    sizes = [f"width {numbers[0].width}", f"{numbers[0].epochs} epochs"] if numbers else []
    return ", ".join(
        [*sizes, f"{seeds} seed{'' if seeds == 1 else 's'}", *(["another data set"] if other_data else [])]
    )


def _along(ours: float, paper: float) -> float:
    """Our effect, counted in the paper's direction; its size where the paper has none."""
    return math.copysign(1, paper) * ours if paper else abs(ours)


def _tally(words: Iterable[Word]) -> dict[Word, int]:
    """The most frequent first; what is undecided last."""
    counts = Counter(words)
    order = sorted(_WORDS, key=lambda word: (word == "undecided", -counts[word]))
    return {word: counts[word] for word in order if counts[word]}


def _counted(effects: Sequence[Effect], words: Mapping[Effect, Word]) -> str:
    """For people: "of 5 effects 2 are weaker, 2 agree and 1 is undecided"."""
    counts = _tally(words[effect] for effect in effects)
    if len(counts) == 1:
        (word,) = counts
        return (
            f"all {len(effects)} effects {_TOLD[word][1]}" if len(effects) > 1 else f"its one effect {_TOLD[word][0]}"
        )
    *most, last = (f"{count} {_TOLD[word][count > 1]}" for word, count in counts.items())
    return f"of {len(effects)} effects {', '.join(most)} and {last}"
