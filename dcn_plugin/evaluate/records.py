"""Result records: what was measured, on what, with which counts; strict in and out of JSON.

A record stores counts. Rates and intervals follow from them; JSON shows them too, and a file whose rates do
not follow from its counts is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dcn_plugin.errors import RecordError
from dcn_plugin.support.arguments import is_count, is_number
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.environment import hardware, package_versions
from dcn_plugin.support.number_format import Scalar
from dcn_plugin.support.statistics import wilson

__all__ = ["SCHEMA", "Relation", "Result", "ResultFile", "Rounding", "Scalar"]

SCHEMA = 2
"""Version of the record's fields. A change of meaning gets a new number."""

Rounding = Literal["none", "8bit"]
Relation = Literal["same network", "other weights", "other masks", "other network"]

# Fields that came after records were published under this schema: where they are None a record does not have them.
_LATER = frozenset({"largest_change", "n_forward_passes", "n_backward_passes"})
_DERIVED = ("clean_accuracy", "defense_rate", "defense_interval", "accuracy_all", "accuracy_interval")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One target under one protocol setting.

    Args:
        protocol: name of the protocol, e.g. "transfer" or "gaussian".
        target: name of the model that was measured.
        data: name of the image set.
        data_hash: SHA-256 of its content.
        seed: of the run that made the models.
        n_total: images in the set.
        n_counted: images of the protocol's denominator. Transfer: source fooled and target right on the clean image
            (the paper's). Noise and changed images: right on the clean image for every target of the comparison.
            Decision-based attacks: images that have a distance.
        n_clean_correct: images that the target classifies correctly as they are; None where there are no clean images.
        n_defended: counted images that the target still classifies correctly; None where the protocol asks for
            something else, such as a distance.
        n_correct: of all images, those that the target classifies correctly after the change; None as above.
        source: name of the attacked model, None where there is none.
        relation: how the source relates to the target, read off the two networks: "same network" (white-box: the
            source is, holds, or lies within the target), "other weights" (same structure and masks, another training
            run; or a shared backbone), "other masks" (same structure and keep probability, masks drawn anew; or the
            same weights with other masks or none), or "other network" (black-box). Of several sources, and of the
            members of an ensemble, the closest.
        n_source_correct: images that the source classifies correctly as they are.
        n_source_fooled: of those, the ones it gets wrong after the attack (judged before rounding).
        n_zero_gradient: images on which the source's loss had a gradient of exactly zero at some step; None where that
            was not counted.
        n_failed_starts: images for which a decision-based attack found no adversarial image to start from.
        figures: what the protocol measures beyond counts, e.g. "median_distance".
        passed: the verdict of a check, None where the protocol gives none, or could not.
        attack: name of the attack or of the noise, None for clean images.
        attack_settings: its scalar settings.
        eps: strength, in units of [0, 1] images: radius of the ball, or sigma of the noise.
        steps: steps of the attack.
        largest_change: the furthest that any image of the set was moved, measured on the images that the target saw, in
            the norm of the attack (L-inf for attacks in such a ball, else L2) and in units of [0, 1] images. An attack
            that does not come near its eps is weaker than its name. None where it was not measured; JSON then leaves
            it out, as do records of before it was.
        n_forward_passes: of the attacks, over all images: how many images they asked a model about, the checks of the
            clean image and of the result included. None, and left out of JSON, where there is no attack, and in records
            of before it was counted.
        n_backward_passes: those of them through which a gradient came back; 0 for decision-based attacks.
        rounding: "8bit": the images were rounded to multiples of 1/255 before the target saw them.
        versions: package -> version.
        hardware: what it ran on.
        schema: version of these fields.

    Raises:
        RecordError: a field has the wrong type, or the counts contradict each other.
    """

    protocol: str
    target: str
    data: str
    data_hash: str
    seed: int
    n_total: int
    n_counted: int
    n_clean_correct: int | None = None
    n_defended: int | None = None
    n_correct: int | None = None
    source: str | None = None
    relation: Relation | None = None
    n_source_correct: int | None = None
    n_source_fooled: int | None = None
    n_zero_gradient: int | None = None
    n_failed_starts: int | None = None
    figures: Mapping[str, Scalar] = field(default_factory=dict)
    passed: bool | None = None
    attack: str | None = None
    attack_settings: Mapping[str, Scalar] = field(default_factory=dict)
    eps: float | None = None
    steps: int | None = None
    largest_change: float | None = None
    n_forward_passes: int | None = None
    n_backward_passes: int | None = None
    rounding: Rounding = "none"
    versions: Mapping[str, Scalar] = field(default_factory=package_versions)
    hardware: Mapping[str, Scalar] = field(default_factory=hardware)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise RecordError(
                "The record follows a schema that this version does not know.",
                self.schema,
                str(SCHEMA),
                "use the version of dcn-plugin that wrote it",
            )
        for item in dataclasses.fields(self):
            _check_type(item.name, getattr(self, item.name), str(item.type))
        if not self.n_total:
            raise RecordError("A record needs at least one image.", 0, "n_total >= 1")
        for name in ("eps", "largest_change"):
            length = getattr(self, name)
            if length is not None and not (math.isfinite(length) and length >= 0):
                raise RecordError(f"{name} must be a finite number >= 0.", length)
        for small, large in (
            ("n_clean_correct", "n_total"),
            ("n_counted", "n_total"),
            ("n_counted", "n_clean_correct"),
            ("n_defended", "n_counted"),
            ("n_defended", "n_correct"),
            ("n_correct", "n_total"),
            ("n_source_correct", "n_total"),
            ("n_source_fooled", "n_source_correct"),
            ("n_counted", "n_source_fooled"),
            ("n_zero_gradient", "n_total"),
            ("n_failed_starts", "n_total"),
            ("n_backward_passes", "n_forward_passes"),
        ):
            a, b = getattr(self, small), getattr(self, large)
            if a is not None and b is not None and a > b:
                raise RecordError(
                    "The counts contradict each other.", f"{small}={a}, {large}={b}", f"{small} <= {large}"
                )

    @property
    def setting(self) -> Hashable:
        """What was measured and with which seeds: all that does not say what came out, or what it ran on.

        Of two records with the same setting the newer one stands for it.
        """
        settings = tuple(sorted((name, repr(value)) for name, value in self.attack_settings.items()))
        model, images = (self.target, self.source, self.seed), (self.data, self.data_hash, self.rounding)
        return (self.protocol, model, images, self.attack, settings, self.eps)

    @property
    def clean_accuracy(self) -> float | None:
        """Share of all images that the target classifies correctly as they are."""
        return _share(self.n_clean_correct, self.n_total)

    @property
    def defense_rate(self) -> float | None:
        """The paper's figure: of the counted images, the share the target still gets right; None if none counts."""
        return _share(self.n_defended, self.n_counted)

    @property
    def defense_interval(self) -> tuple[float, float] | None:
        """Wilson 95 % interval of :attr:`defense_rate`."""
        return _interval(self.n_defended, self.n_counted)

    @property
    def accuracy_all(self) -> float | None:
        """Share of all images that the target classifies correctly after the change; None if that was not asked."""
        return _share(self.n_correct, self.n_total)

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson 95 % interval of :attr:`accuracy_all`."""
        return _interval(self.n_correct, self.n_total)

    def to_dict(self) -> dict[str, Any]:
        """Fields and derived figures, ready for JSON."""
        stored = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        stored |= {key: dict(value) for key, value in stored.items() if isinstance(value, Mapping)}
        stored = {key: value for key, value in stored.items() if key not in _LATER or value is not None}
        derived = {name: getattr(self, name) for name in _DERIVED}
        return stored | {key: list(v) if isinstance(v, tuple) else v for key, v in derived.items()}

    @classmethod
    def from_dict(cls, raw: object) -> Result:
        """Read what :meth:`to_dict` made; the exact inverse.

        Raises:
            RecordError: a field is missing, unknown, of the wrong type, or contradicts another.
        """
        if not isinstance(raw, Mapping):
            raise RecordError("A record is a JSON object.", type(raw).__name__)
        names = {item.name for item in dataclasses.fields(cls)}
        if raw.keys() | _LATER != names | set(_DERIVED):
            raise RecordError(
                "The record's fields are not those of the schema.",
                {
                    "missing": sorted((names | set(_DERIVED)) - raw.keys() - _LATER),
                    "unknown": sorted(map(str, raw.keys() - names - set(_DERIVED))),
                },
                f"schema {SCHEMA}",
            )
        result = cls(**{name: raw[name] for name in names & raw.keys()})
        again = result.to_dict()
        for name in _DERIVED:
            if raw[name] != again[name]:
                raise RecordError(
                    f"{name} does not follow from the record's counts.",
                    raw[name],
                    repr(again[name]),
                    "do not edit records",
                )
        return result


@dataclass(frozen=True)
class ResultFile:
    """What a results file holds.

    Args:
        spec: the settings that led to the results, as JSON values.
        results: the records.
        run: what differs from one run of the same spec to the next (time, duration).
    """

    spec: Mapping[str, Any]
    results: tuple[Result, ...]
    run: Mapping[str, Any] = field(default_factory=dict)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, atomically: the same spec and results give the same bytes up to ``run``."""
        content = {
            "schema": SCHEMA,
            "run": dict(self.run),
            "spec": dict(self.spec),
            "results": [result.to_dict() for result in self.results],
        }
        write_atomic(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ResultFile:
        """Read what :meth:`write` wrote.

        Raises:
            RecordError: the file is truncated, of another schema, or a record in it is not valid.
            FileNotFoundError: there is no such file.
        """
        with open(path, "rb") as file:
            content = file.read()
        try:
            raw = json.loads(content)
            keys = raw.keys()
        except (ValueError, AttributeError) as error:
            raise RecordError(
                f"{os.fspath(path)} is not a results file ({error}).", content[:60], "what ResultFile.write() wrote"
            ) from error
        wrong = keys != {"schema", "run", "spec", "results"} or raw["schema"] != SCHEMA
        if wrong or not isinstance(raw["results"], list):
            raise RecordError(
                f"{os.fspath(path)} does not follow the schema of results files.",
                {"keys": sorted(keys), "schema": raw.get("schema")},
                f"schema {SCHEMA} with run, spec and results",
            )
        return cls(raw["spec"], tuple(map(Result.from_dict, raw["results"])), raw["run"])


def _share(part: int | None, total: int) -> float | None:
    return part / total if part is not None and total else None


def _interval(part: int | None, total: int) -> tuple[float, float] | None:
    return wilson(part, total) if part is not None and total else None


def _is_scalars(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(key, str) and (item is None or isinstance(item, str | int | float)) for key, item in value.items()
    )


# annotation -> what it asks of a value
_CHECKS: dict[str, Callable[[object], bool]] = {
    "str": lambda value: isinstance(value, str),
    "str | None": lambda value: value is None or isinstance(value, str),
    "int": is_count,
    "int | None": lambda value: value is None or is_count(value),
    "float | None": lambda value: value is None or is_number(value),
    "Mapping[str, Scalar]": _is_scalars,
    "bool | None": lambda value: value is None or isinstance(value, bool),
    "Rounding": lambda value: value in get_args(Rounding),
    "Relation | None": lambda value: value is None or value in get_args(Relation),
}


def _check_type(name: str, value: object, annotation: str) -> None:
    if not _CHECKS[annotation](value):
        allowed = annotation.replace("int", "int >= 0")
        for alias, choices in (("Rounding", Rounding), ("Relation", Relation)):
            allowed = allowed.replace(alias, " or ".join(map(repr, get_args(choices))))
        raise RecordError(f"{name} has the wrong type or value.", value, allowed)
