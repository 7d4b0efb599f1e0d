"""Records grouped for showing: the same measurement on several training runs becomes one cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import Relation, Result, Scalar, Spread, spread, wilson
from dcn_plugin.evaluate.protocol import Protocol, Strength
from dcn_plugin.evaluate.protocols import protocol_of
from dcn_plugin.evaluate.relations import closest
from dcn_plugin.support.number_format import value

__all__ = ["FAIL", "GENERAL", "PASS", "UNKNOWN", "Cell", "Matrix", "apart", "cells", "cells_of", "clean_cells",
           "data_labels", "strength_of", "words_of"]  # fmt: skip

PASS, FAIL, UNKNOWN = "pass", "FAIL", "unknown"
"""The verdicts of a check, as tables show them."""

GENERAL = Protocol(name="", record="", title="", help="", measure=lambda _: ())
"""The words of a protocol that is not known here."""


@dataclass(frozen=True)
class Cell:
    """One target under one setting, over all runs.

    Args:
        attack: the attack as shown: its name and, where the name alone would stand for several, what differs.
        runs: the records, by seed; they differ in nothing but seeds, counts, versions and hardware.
        data: the image set as shown: its name and, where the name alone would stand for several, its hash.
    """

    attack: str | None
    runs: tuple[Result, ...]
    data: str

    @property
    def protocol(self) -> str:
        """As in the records."""
        return self.runs[0].protocol

    @property
    def target(self) -> str:
        """As in the records."""
        return self.runs[0].target

    @property
    def source(self) -> str | None:
        """As in the records."""
        return self.runs[0].source

    @property
    def eps(self) -> float | None:
        """As in the records."""
        return self.runs[0].eps

    @property
    def rounding(self) -> str:
        """As in the records."""
        return self.runs[0].rounding

    @property
    def relation(self) -> str | None:
        """How the source relates to the target; where that changes from run to run, everything that it is."""
        return " / ".join(dict.fromkeys(run.relation for run in self.runs if run.relation)) or None

    @property
    def closest(self) -> Relation | None:
        """The closest relation of any run; None if no record says one."""
        relations = [run.relation for run in self.runs if run.relation]
        return closest(relations) if relations else None

    @property
    def words(self) -> Protocol:
        """What its protocol says of itself."""
        return words_of(self.runs[0])

    @property
    def no_transfer(self) -> bool:
        """Whether a source of what is shown as a transfer attack was, in any run, the target itself or held it."""
        return not self.words.itself and self.closest == "same network"

    @property
    def strength(self) -> float | None:
        """eps, or what takes its place in this protocol."""
        return strength_of(self.runs[0]).of(self.runs[0])

    @property
    def condition(self) -> tuple[object, ...]:
        """All that targets must share to be held against each other, but for the strength."""
        first, source = self.runs[0], None if self.words.itself else self.source
        return (self.protocol, source, self.attack, first.data, first.data_hash, first.rounding)

    @property
    def accuracy(self) -> Spread | None:
        """Accuracy on all images; None if it was not measured."""
        return _spread(run.accuracy_all for run in self.runs)

    @property
    def clean(self) -> Spread | None:
        """Accuracy on the clean images; None if there were none."""
        return _spread(run.clean_accuracy for run in self.runs)

    @property
    def defense(self) -> Spread | None:
        """Defence rate over the runs that have one; None if no run has."""
        return _spread(run.defense_rate for run in self.runs)

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Envelope of the runs' Wilson 95 % intervals: from the lowest lower to the highest upper bound."""
        return _envelope(run.accuracy_interval for run in self.runs)

    @property
    def clean_interval(self) -> tuple[float, float] | None:
        """As :attr:`accuracy_interval`, on the clean images."""
        return _envelope(
            None if run.n_clean_correct is None else wilson(run.n_clean_correct, run.n_total) for run in self.runs
        )

    @property
    def defense_interval(self) -> tuple[float, float] | None:
        """The same for the defence rate; None if no run has one."""
        return _envelope(run.defense_interval for run in self.runs)

    @property
    def flaw(self) -> str | None:
        """Why there is no rate or no distance to show; None if there is."""
        if all(run.n_clean_correct == 0 for run in self.runs):
            return "no clean image is classified correctly"
        if all(run.n_counted == 0 for run in self.runs):
            return "no image counts"
        return None

    @property
    def verdict(self) -> str:
        """Of a check over the runs: one failure is a failure, one verdict that is missing is unknown."""
        verdicts = {run.passed for run in self.runs}
        return FAIL if False in verdicts else UNKNOWN if None in verdicts else PASS

    def total(self, count: str) -> int | None:
        """Sum of a count over the runs, by the name of its field; None if a run does not have it."""
        counts = [getattr(run, count) for run in self.runs]
        return None if None in counts else sum(counts)

    def figure(self, name: str) -> Spread | None:
        """A number of ``figures`` over the runs that have it; None if no run has."""
        return _spread(_as_number(run.figures.get(name)) for run in self.runs)

    def figure_interval(self, low: str, high: str) -> tuple[float, float] | None:
        """As :attr:`accuracy_interval`, of an interval whose bounds are two numbers of ``figures``."""
        lower, upper = self.figure(low), self.figure(high)
        return None if lower is None or upper is None else (lower.low, upper.high)


@dataclass(frozen=True)
class Matrix:
    """What several sources do to several targets under one attack at one strength.

    Args:
        cells: (source, target) -> cell; a pair may be missing.
    """

    cells: Mapping[tuple[str, str], Cell]

    @property
    def sources(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(source for source, _ in self.cells))

    @property
    def targets(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(target for _, target in self.cells))

    @property
    def family(self) -> tuple[object, ...]:
        """Attack, images and rounding: what matrices of several strengths share."""
        protocol, _, *rest = self.example.condition
        return (protocol, *rest)

    @property
    def example(self) -> Cell:
        """Any cell; they share attack, strength, images and rounding."""
        return next(iter(self.cells.values()))


def words_of(result: Result) -> Protocol:
    """What the protocol of a record says of itself; of a protocol that is not known here, what holds in general."""
    return protocol_of(result) or GENERAL


def strength_of(result: Result) -> Strength:
    """Which number of a record is its strength; eps, where its protocol names none."""
    return words_of(result).strength or Strength()


def apart(first: tuple[float, float] | None, second: tuple[float, float] | None) -> bool:
    """Whether two intervals have no point in common; False where one is missing."""
    return first is not None and second is not None and (first[0] > second[1] or first[1] < second[0])


def cells(results: Sequence[Result], *, protocol: str) -> list[Cell]:
    """Group the records of one protocol, in the order in which they first appear.

    Two records belong together if they differ in seeds alone; whatever else the settings hold keeps them apart.

    Raises:
        RecordError: a setting was measured twice with the same seeds.
    """
    records = [result for result in results if result.protocol == protocol]
    telling, images = _telling_settings(records), data_labels(results)
    groups: dict[object, dict[tuple[int, str], Result]] = {}
    for result in records:
        runs = groups.setdefault(_setting(result), {})
        seeds = (result.seed, repr(sorted((k, v) for k, v in result.attack_settings.items() if _is_seed(k))))
        if seeds in runs:
            raise RecordError(
                "The same setting was measured twice with one seed.",
                (protocol, result.source, result.attack, result.eps, result.target, result.seed),
                fix="keep one of the two records",
            )
        runs[seeds] = result
    grouped = []
    for runs in groups.values():
        first, *_ = in_order = tuple(runs[seeds] for seeds in sorted(runs))
        grouped.append(Cell(_label(first, telling), in_order, images[first.data, first.data_hash]))
    return grouped


def cells_of(results: Sequence[Result], protocol: Protocol) -> list[Cell]:
    """The cells of a protocol, whose records may bear several names, one name after the other."""
    names = dict.fromkeys(result.protocol for result in results if protocol_of(result) is protocol)
    return [cell for name in names for cell in cells(results, protocol=name)]


def clean_cells(results: Sequence[Result]) -> list[Cell]:
    """One cell a target and image set for its accuracy on clean images, read off the first record of each seed."""
    counted = [result for result in results if result.n_clean_correct is not None]
    # A protocol that takes a part of the images is asked only if nothing else knows.
    ordinary = [result for result in counted if not words_of(result).partial]
    covered = {result.target for result in ordinary}
    groups: dict[tuple[str, str, str], dict[int, Result]] = {}
    for result in [*ordinary, *(result for result in counted if result.target not in covered)]:
        key = (result.data, result.data_hash, result.target)
        groups.setdefault(key, {}).setdefault(result.seed, result)
    images = data_labels(results)
    return [
        Cell(None, tuple(runs[seed] for seed in sorted(runs)), images[name, data_hash])
        for (name, data_hash, _), runs in groups.items()
    ]


def data_labels(results: Sequence[Result]) -> dict[tuple[str, str], str]:
    """(name, hash) of every image set -> what it is called: its name, with the hash where two share the name."""
    sets = dict.fromkeys((result.data, result.data_hash) for result in results)
    shared = Counter(name for name, _ in sets)
    return {(name, content): f"{name} ({content[:8]})" if shared[name] > 1 else name for name, content in sets}


def _setting(result: Result) -> object:
    settings = tuple(sorted((k, repr(v)) for k, v in result.attack_settings.items() if not _is_seed(k)))
    return (result.data, result.data_hash, result.source, result.attack, settings, result.eps, result.rounding,
            result.target)  # fmt: skip


def _is_seed(name: str) -> bool:
    return name == "seed" or name.endswith("_seed")


def _telling_settings(results: Sequence[Result]) -> dict[str | None, list[str]]:
    """Attack -> names of the settings that differ between records of the same attack, images and strength.

    Settings that only change along with the strength, such as a step of eps / 4, tell nothing apart. A norm that is not
    L-inf is always told: radii of two norms are two quantities. So are the sources of TAPM where they differ anywhere:
    they do not follow from the strength.
    """
    values: dict[object, dict[str, set[str]]] = {}
    names: dict[str | None, dict[str, None]] = {}
    sources: dict[str | None, set[object]] = {}
    for result in results:
        names.setdefault(result.attack, {}).update(dict.fromkeys(result.attack_settings))
        sources.setdefault(result.attack, set()).add(result.attack_settings.get("sources"))
    for result in results:
        group = values.setdefault(_compared(result), {})
        for name in names[result.attack]:
            group.setdefault(name, set()).add(repr(result.attack_settings.get(name)))
    differ: dict[str | None, dict[str, None]] = {}
    for result in results:
        telling = [name for name, texts in values[_compared(result)].items() if len(texts) > 1 and not _is_seed(name)]
        if result.attack_settings.get("norm", "Linf") != "Linf":
            telling.append("norm")
        if len(sources[result.attack]) > 1:
            telling.append("sources")
        differ.setdefault(result.attack, {}).update(dict.fromkeys(telling))
    return {attack: list(telling) for attack, telling in differ.items()}


def _compared(result: Result) -> object:
    return (result.attack, result.data_hash, strength_of(result).of(result))


def _label(result: Result, telling: Mapping[str | None, Sequence[str]]) -> str | None:
    parts = [
        f"{name} {value(result.attack_settings[name])}"
        for name in telling[result.attack]
        if name in result.attack_settings
    ]
    return f"{result.attack} ({', '.join(parts)})" if parts else result.attack


def _as_number(scalar: Scalar) -> float | None:
    return float(scalar) if isinstance(scalar, int | float) and not isinstance(scalar, bool) else None


def _spread(values: Iterable[float | None]) -> Spread | None:
    numbers = [value for value in values if value is not None]
    return spread(numbers) if numbers else None


def _envelope(intervals: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    bounds = [interval for interval in intervals if interval is not None]
    return (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else None
