"""What a protocol says of itself: its names, what it needs, its options, and how its records are read.

The command line, recipes, estimates of time and reports ask these words; none of them knows a protocol by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from dcn_plugin.attacks import Attack
from dcn_plugin.evaluate.records import Result
from dcn_plugin.support.number_format import Scalar

__all__ = ["DEFAULT_ATTACKS", "ROUNDING", "Option", "Protocol", "Request", "Strength"]

Kind = Literal["count", "positive", "probability", "radius", "text", "class map"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One setting of a protocol, as the command line and recipes take it.

    Args:
        name: of the keyword in :attr:`Request.options`.
        help: one line, without the default.
        kind: what its text stands for: a count (int >= 1), a positive number ("16/255" too), a probability, a radius in
            (0, 1], a text, or the path of a file with a class map.
        default: what holds where it is not given.
        choices: the only texts, where there are few.
        several: it may be repeated; the value is a tuple.
        flag: on the command line; "--name" by default.
        metavar: what stands for the value in a help text.
        required: it has no default.
    """

    name: str
    help: str
    kind: Kind = "text"
    default: Any = None
    choices: tuple[str, ...] = ()
    several: bool = False
    flag: str = ""
    metavar: str = "X"
    required: bool = False


@dataclass(frozen=True)
class Strength:
    """Which number of a record says how strong the change of its images was.

    Args:
        setting: of ``attack_settings``; "eps" is the record's own field.
        label: for an axis or a column.
        start: the strength at which an image is as it was.
        logarithmic: whether an axis of it is.
    """

    setting: str = "eps"
    label: str = "eps"
    start: float = 0.0
    logarithmic: bool = False

    def of(self, result: Result) -> float | None:
        """The strength of a record; None where it has none."""
        value: Scalar = result.eps if self.setting == "eps" else result.attack_settings.get(self.setting)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a protocol is to measure, as the command line or a recipe asks for it.

    Args:
        targets: name -> model to measure.
        sources: name -> model to attack.
        attacks: what attacks them, or the targets.
        data: labelled images; for "pair" (originals, changed), for "cues" a :class:`~dcn_plugin.data.CueConflict`.
        options: name -> value, of :attr:`Protocol.options`; what is left out is the default.
        run: keywords that every protocol takes: ``training_seed``, ``batch_size``, ``store``, ``accelerator``,
            ``progress``.
    """

    targets: Mapping[str, nn.Module]
    sources: Mapping[str, nn.Module] = field(default_factory=dict)
    attacks: Sequence[Attack] = ()
    data: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The words of a protocol.

    Args:
        name: in recipes and on the command line.
        record: in the records; "" where records bear the name of the attack.
        title: what it measures, for headings and sentences.
        help: one line for the command line.
        measure: does the work; raises at once where arguments do not fit.
        commands: its names on the command line, where it has others there: each that of an attack.
        sources: whether models to attack are "needed", "optional" or not taken ("").
        attacks: the attacks that run where none is named, as the command line writes them; None: none can be named.
        attack: options -> its one attack as the command line writes it, where the options say all of it. Recipes write
            their attacks themselves, and do not have such a protocol.
        data: "images", a "pair" of folders, or a folder of cue-conflict images ("cues").
        options: its settings.
        strength: what its records are ordered by; None: they have no strength.
        figure: the number of a record that a table of a recipe shows.
        column: name of a recipe's column, with {source}, {attack}, {level} or {k} in it.
        rounding: of adversarial images in recipes.
        better: whether a "higher" or a "lower" accuracy speaks for a network; "": it is not compared.
        partial: its records count a part of the images, so that the clean accuracy is asked of others first.
        itself: the source is the target itself: a relation "same network" is no flaw.
        joint: a record stands for all sources and attacks together.
        figures: the names of its numbers in the records; the first tells its records where ``record`` is "".
    """

    name: str
    record: str
    title: str
    help: str
    measure: Callable[[Request], Iterable[Result]]
    commands: tuple[str, ...] = ()
    sources: Literal["", "optional", "needed"] = ""
    attacks: tuple[str, ...] | None = None
    attack: Callable[[Mapping[str, Any]], str] | None = None
    data: Literal["images", "pair", "cues"] = "images"
    options: tuple[Option, ...] = ()
    strength: Strength | None = field(default_factory=Strength)
    figure: str = "defense_rate"
    column: str = "{attack}"
    rounding: Literal["none", "8bit"] = "8bit"
    better: Literal["", "higher", "lower"] = ""
    partial: bool = False
    itself: bool = False
    joint: bool = False
    figures: tuple[str, ...] = ()

    @property
    def verdicts(self) -> bool:
        """Whether its records hold a verdict, so that a record in which no image counts is sound."""
        return self.figure == "passed"

    def takes(self, option: str) -> bool:
        """Whether it has an option of this name."""
        return any(candidate.name == option for candidate in self.options)


#: The attacks of the command line where none is named.
DEFAULT_ATTACKS = ("pgd,eps=8/255",)
#: What adversarial images are rounded to.
ROUNDING = Option(name="rounding", choices=("none", "8bit"), default="none", help="of adversarial images")
