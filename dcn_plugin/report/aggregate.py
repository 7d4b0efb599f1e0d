"""Records grouped for showing: the same measurement on several training runs becomes one cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import Relation, Result, Scalar, Spread, spread, wilson
from dcn_plugin.evaluate.relations import closest
from dcn_plugin.support.number_format import value

__all__ = ["Cell", "Matrix", "cells", "clean_cells", "data_labels", "is_distance", "matrices", "strength_of"]

# protocol -> the setting that is its strength, where that is not eps
_STRENGTH = {"shuffle": "k"}


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
        said = [run.relation for run in self.runs if run.relation]
        return closest(said) if said else None

    @property
    def no_transfer(self) -> bool:
        """Whether a source of what is shown as a transfer attack was, in any run, the target itself or held it."""
        return self.protocol != "whitebox" and self.closest == "same network"

    @property
    def strength(self) -> float | None:
        """eps, or what takes its place in this protocol."""
        return strength_of(self.runs[0])

    @property
    def condition(self) -> tuple[object, ...]:
        """All that targets must share to be held against each other, but for the strength."""
        own = self.protocol == "whitebox"  # there the source is the target itself
        first = self.runs[0]
        return (self.protocol, None if own else self.source, self.attack, first.data, first.data_hash, first.rounding)

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

    def total(self, count: str) -> int | None:
        """Sum of a count over the runs, by the name of its field; None if a run does not have it."""
        found = [getattr(run, count) for run in self.runs]
        return None if None in found else sum(found)

    def figure(self, name: str) -> Spread | None:
        """A number of ``figures`` over the runs that have it; None if no run has."""
        return _spread(number for run in self.runs if (number := _as_number(run.figures.get(name))) is not None)


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


def is_distance(result: Result) -> bool:
    """Whether a record holds a distance in place of an accuracy: Boundary, HopSkipJump, CW and their like."""
    return "median_distance" in result.figures


def cells(results: Sequence[Result], *, protocol: str) -> list[Cell]:
    """Group the records of one protocol, in the order in which they first appear.

    Two records belong together if they differ in seeds alone; whatever else the settings hold keeps them apart.

    Raises:
        RecordError: a setting was measured twice with the same seeds.
    """
    own = [result for result in results if result.protocol == protocol]
    telling, images = _telling_settings(own), data_labels(results)
    groups: dict[object, dict[tuple[int, str], Result]] = {}
    for result in own:
        runs = groups.setdefault(_setting(result), {})
        seeds = (result.seed, repr(sorted((k, v) for k, v in result.attack_settings.items() if _is_seed(k))))
        if seeds in runs:
            raise RecordError(
                "The same setting was measured twice with one seed.",
                (protocol, result.source, result.attack, result.eps, result.target, result.seed),
                fix="keep one of the two records",
            )
        runs[seeds] = result
    made = []
    for runs in groups.values():
        first, *_ = in_order = tuple(runs[seeds] for seeds in sorted(runs))
        made.append(Cell(_label(first, telling), in_order, images[first.data, first.data_hash]))
    return made


def clean_cells(results: Sequence[Result]) -> list[Cell]:
    """One cell a target and image set for its accuracy on clean images, read off the first record of each seed."""
    known = [result for result in results if result.n_clean_correct is not None]
    # A distance or a check may be taken on a part of the images: it is asked only if nothing else knows.
    ordinary = [result for result in known if not is_distance(result) and result.protocol != "sanity"]
    covered = {result.target for result in ordinary}
    groups: dict[tuple[str, str, str], dict[int, Result]] = {}
    for result in [*ordinary, *(result for result in known if result.target not in covered)]:
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


def matrices(results: Sequence[Result]) -> list[Matrix]:
    """The transfer matrices: one an attack, strength, image set and rounding that at least two sources share.

    Strengths of one attack stand side by side, in the order of the attacks' first appearance.
    """
    groups: dict[object, dict[tuple[str, str], Cell]] = {}
    for cell in cells(results, protocol="transfer"):
        pair = (str(cell.source), cell.target)
        setting = (*Matrix({pair: cell}).family, cell.strength)
        groups.setdefault(setting, {})[pair] = cell
    found = [matrix for matrix in map(Matrix, groups.values()) if len(matrix.sources) > 1]
    attacks = list(dict.fromkeys(matrix.family for matrix in found))
    return sorted(found, key=lambda matrix: attacks.index(matrix.family))


def _setting(result: Result) -> object:
    settings = tuple(sorted((k, repr(v)) for k, v in result.attack_settings.items() if not _is_seed(k)))
    return (result.data, result.data_hash, result.source, result.attack, settings, result.eps, result.rounding,
            result.target)  # fmt: skip


def _is_seed(name: str) -> bool:
    return name == "seed" or name.endswith("_seed")


def strength_of(result: Result) -> float | None:
    """eps, or what takes its place in the protocol; None where there is no strength."""
    instead = _STRENGTH.get(result.protocol)
    return result.eps if instead is None else _as_number(result.attack_settings.get(instead))


def _telling_settings(results: Sequence[Result]) -> dict[str | None, list[str]]:
    """Attack -> names of the settings that differ between records of the same attack, images and strength.

    Settings that only change along with the strength, such as a step of eps / 4, tell nothing apart. A norm that is not
    L-inf is always told: radii of two norms are two quantities. So are the sources of TAPM where they differ anywhere:
    they do not follow from the strength.
    """
    met: dict[object, dict[str, set[str]]] = {}
    names: dict[str | None, list[str]] = {}
    for result in results:
        for name in result.attack_settings:
            known = names.setdefault(result.attack, [])
            if name not in known and not _is_seed(name) and name != _STRENGTH.get(result.protocol):
                known.append(name)
    for result in results:
        group = met.setdefault((result.attack, result.data_hash, strength_of(result)), {})
        for name in names.get(result.attack, []):
            group.setdefault(name, set()).add(repr(result.attack_settings.get(name)))
    sources: dict[str | None, set[object]] = {}
    for result in results:
        sources.setdefault(result.attack, set()).add(result.attack_settings.get("sources"))
    differ: dict[str | None, list[str]] = {}
    for result in results:
        group = met[(result.attack, result.data_hash, strength_of(result))]
        known = differ.setdefault(result.attack, [])
        known += [name for name, values in group.items() if len(values) > 1 and name not in known]
        if result.attack_settings.get("norm", "Linf") != "Linf" and "norm" not in known:
            known.append("norm")
        if len(sources[result.attack]) > 1 and "sources" not in known:
            known.append("sources")
    return differ


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
    known = [value for value in values if value is not None]
    return spread(known) if known else None


def _envelope(intervals: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    known = [interval for interval in intervals if interval is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None
