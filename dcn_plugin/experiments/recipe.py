"""A recipe in data: which networks a table of the paper compares, and under what; read from TOML."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import dcn_plugin.errors as errors
from dcn_plugin.evaluate.protocol import ROUNDING, Protocol
from dcn_plugin.evaluate.protocols import PROTOCOLS, whitebox
from dcn_plugin.experiments.attack_names import AttackSpec, read_attack
from dcn_plugin.experiments.commentary import FINDING, Finding, read_finding
from dcn_plugin.experiments.datasets import DATA
from dcn_plugin.experiments.networks import NETS, SOURCE, Network, read_network
from dcn_plugin.experiments.paper_tables import CLEAN, PaperTable, paper_numbers
from dcn_plugin.experiments.scales import SCALES, Scale, scale_for
from dcn_plugin.support.suggestions import check_known, closest

__all__ = [
    *("MEASURES", "PICTURES", "Measure", "RecipeSpec"),
    *("further_records", "list_recipes", "load_recipe", "recipes_root"),
]

SpecError = errors.SpecError

_KEYS = (
    *("like", "reproduces", "title", "numbers", "only", "data", "net", "inferred", "skip", "stated", "rows", "against"),
    "measure",
    *SCALES,
)
_MEASURE_KEYS = (
    *("protocol", "sources", "attacks", "levels", "ks", "columns", "figure", "rows", "groups", "rounding"),
    *("confidence", "count"),
)
_RATES = ("defense_rate", "accuracy_all", "clean_accuracy")
_FIGURES = ("defense_rate", "accuracy_all", "median_distance", "mean_queries")
_PLACES = ("source", "attack", "level", "k")
FILE = "recipe.toml"

PICTURES = ("images", "user-study")
"""Measures that write adversarial images for people; the images are those of white-box attacks."""

MEASURES: Mapping[str, Protocol] = {
    **{name: known for name, known in PROTOCOLS.items() if known.figure in _FIGURES and known.attack is None},
    **dict.fromkeys(PICTURES, whitebox.PROTOCOL),
}
"""Name in a recipe -> protocol: those whose figure a table can show, and what pictures are taken of."""


@dataclass(frozen=True)
class Measure:
    """One protocol of a recipe.

    Args:
        protocol: one of :data:`MEASURES`.
        sources: label -> the networks whose mean logits are attacked.
        attacks: label -> attack.
        levels: strengths, in grey levels, of a protocol that takes some.
        ks: patches along either axis, of a protocol that shuffles patches.
        columns: name of a column of the table, with {source}, {attack}, {level} or {k} in it.
        figure: what stands in the table: "defense_rate" (the paper's denominator), "accuracy_all" (every test image),
            or a figure of the record.
        rows: the rows that are measured; () = all.
        groups: rows that are compared only with each other; the images count that all rows of a group have right.
        rounding: of adversarial images.
        confidence: least softmax probability of an image that counts.
        count: images of pictures to look at.
    """

    protocol: str
    columns: str
    figure: str = "defense_rate"
    sources: Mapping[str, tuple[Network, ...]] = field(default_factory=dict)
    attacks: Mapping[str, AttackSpec] = field(default_factory=dict)
    levels: tuple[float, ...] = ()
    ks: tuple[int, ...] = ()
    rows: tuple[str, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()
    rounding: Literal["none", "8bit"] = "8bit"
    confidence: float = 0.99
    count: int = 8


@dataclass(frozen=True)
class RecipeSpec:
    """A recipe.

    Args:
        name: of its folder or file.
        reproduces: "Table 5", "Figure 4", or what else it is for.
        title: what it shows, in one line.
        data: name of the data set, see :data:`dcn_plugin.experiments.datasets.DATA`.
        rows: label -> the networks whose mean logits count, in the order of the table.
        measures: what is measured.
        numbers: the paper's, where it has some.
        stated: row -> column -> a number that the paper's text states.
        skip: row of the paper -> why it is not rerun.
        against: row -> the row that it is held against in a verdict, where that does not follow from the networks.
        inferred: what neither paper nor code states, in sentences.
        scales: scale -> what this recipe changes in it.
        finding: what people add to its committed record, if there is one.
        raw: the TOML as it was read.
    """

    name: str
    reproduces: str
    title: str
    data: str
    rows: Mapping[str, tuple[Network, ...]]
    measures: tuple[Measure, ...]
    numbers: PaperTable | None = None
    stated: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    skip: Mapping[str, str] = field(default_factory=dict)
    against: Mapping[str, str] = field(default_factory=dict)
    inferred: tuple[str, ...] = ()
    scales: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    finding: Finding | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)

    def scale(self, name: str) -> Scale:
        """The settings of a scale.

        Raises:
            SpecError: an unknown scale; the nearest names are in the message.
        """
        check_known("scale", name, SCALES)
        return scale_for(name, self.data, {k: v for k, v in self.changes(name).items() if k != "rows"})

    def changes(self, scale: str) -> dict[str, Any]:
        """What the recipe changes in a scale: at scale medium also what it changes at scale small, but its size."""
        small = self.scales.get("small", {}) if scale == "medium" else {}
        return {k: v for k, v in small.items() if k not in ("width", "epochs")} | dict(self.scales.get(scale, {}))

    def rows_at(self, scale: str) -> dict[str, tuple[Network, ...]]:
        """The rows of a scale: all, or those that it names."""
        chosen = self.changes(scale).get("rows")
        return dict(self.rows) if chosen is None else {label: self.rows[label] for label in chosen}

    def data_at(self, scale: str) -> str:
        """The data set of a scale."""
        return self.scale(scale).data or self.data


def recipes_root() -> Path:
    """The repository's ``recipes`` folder beside the package.

    Raises:
        SpecError: the package is installed without it.
    """
    root = Path(errors.__file__).resolve().parents[1] / "recipes"
    if not (root / "paper_numbers").is_dir():
        raise SpecError(
            "The recipes come with the repository, not with the installed package.",
            str(root),
            "a folder with <name>/recipe.toml and paper_numbers/",
            "pass --recipes DIR (a checkout's recipes folder), or the path of a recipe file",
        )
    return root


def list_recipes(root: str | os.PathLike[str]) -> list[str]:
    """Names of the recipes below a folder: tables, figures, and what goes beyond the paper."""
    names = sorted(path.parent.name for path in Path(root).glob(f"*/{FILE}"))
    first = [name for name in names if name.startswith(("table", "figure", "appendix"))]
    return sorted(first, key=lambda name: "tfa".index(name[0])) + [name for name in names if name not in first]


def further_records(folder: str | os.PathLike[str]) -> list[str]:
    """Scales of which a recipe's folder holds a record beside the one that its page is about, ``record.json``.

    Args:
        folder: of the recipe; the record of a scale lies in ``<scale>/record.json``.
    """
    return [scale for scale in SCALES if (Path(folder) / scale / "record.json").is_file()]


def load_recipe(name: str | os.PathLike[str], root: str | os.PathLike[str] | None = None) -> RecipeSpec:
    """Read a recipe.

    Args:
        name: of a folder below ``root``, or the path of a TOML file.
        root: the recipes folder; the repository's by default.

    Raises:
        SpecError: unknown recipe, key, network, attack or row (the nearest names are in the message), or a file that is
            no TOML.
        DataError: its file of paper numbers is not there.
    """
    text = os.fspath(name)
    by_path = text.endswith(".toml") or os.path.sep in text
    if by_path:
        path = Path(text).expanduser()
        if path.is_dir():
            path = path / FILE
        numbers = path.resolve().parent.parent / "paper_numbers" if root is None else Path(root) / "paper_numbers"
        if not numbers.is_dir():
            numbers = Path(errors.__file__).resolve().parents[1] / "recipes" / "paper_numbers"
    else:
        folder = Path(root) if root is not None else recipes_root()
        names = list_recipes(folder)
        if text not in names:
            raise SpecError("Unknown recipe.", text, ", ".join(names) or f"none in {folder}", closest(text, names))
        path, numbers = folder / text / FILE, folder / "paper_numbers"
    raw = _parse(path)
    if "like" in raw:
        raw = {**_parse(path.parent.parent / str(raw["like"]) / FILE), **raw}
    label = path.parent.name if path.name == FILE else path.stem
    try:
        finding = read_finding(path.with_name(FINDING)) if path.name == FILE else None
        return dataclasses.replace(_read(label, raw, numbers), finding=finding)
    except SpecError as error:
        raise SpecError(f"{label}: {error.what}", error.got, error.allowed, error.fix) from error
    except errors.DataError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise SpecError(f"{label}: a value is of another kind than its entry ({error}).", str(path)) from error


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError("There is no such recipe file.", str(path), f"the path of a {FILE}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is no TOML ({error}).") from error


def _read(name: str, raw: Mapping[str, Any], folder: Path) -> RecipeSpec:
    _check_keys("recipe", raw, _KEYS)
    for key in ("reproduces", "title", "data", "measure"):
        if not raw.get(key):
            raise SpecError("A recipe lacks an entry.", sorted(raw), f"an entry {key!r}")
    check_known("data set", raw["data"], DATA)
    net = raw.get("net", "resnet18")
    check_known("network", net, NETS)
    numbers = None if "numbers" not in raw else paper_numbers(raw["numbers"], folder)
    skip = dict(raw.get("skip", {}))
    rows = _rows(raw.get("rows", {}), numbers, skip, net, only=raw.get("only"))
    measures = tuple(_measure(measure, rows, net) for measure in raw["measure"])
    scales: dict[str, dict[str, Any]] = {scale: dict(raw[scale]) for scale in SCALES if scale in raw}
    spec = RecipeSpec(
        name=name,
        reproduces=raw["reproduces"],
        title=raw["title"],
        data=raw["data"],
        rows=rows,
        measures=measures,
        numbers=numbers,
        stated={row: dict(values) for row, values in raw.get("stated", {}).items()},
        skip=skip,
        against=dict(raw.get("against", {})),
        inferred=(raw["inferred"],) if isinstance(raw.get("inferred"), str) else tuple(raw.get("inferred", ())),
        scales=scales,
        raw=json.loads(json.dumps(raw)),
    )
    for scale in SCALES:
        check_known("data set", spec.data_at(scale), DATA)
        for label in scales.get(scale, {}).get("rows", ()):
            check_known(f"row of scale {scale}", label, rows)
    for label in spec.stated:
        check_known("row with a stated number", label, rows)
    for pair in spec.against.items():
        for label in pair:
            check_known("row to hold against another", label, rows)
    return spec


def _rows(
    given: Mapping[str, Any],
    numbers: PaperTable | None,
    skip: Mapping[str, str],
    net: str,
    *,
    only: Sequence[str] | None,
) -> dict[str, tuple[Network, ...]]:
    """All rows of the paper's table that are rerun, in its order, then those that the recipe adds."""
    labels = [] if numbers is None else [row.label for row in numbers.rows]
    for label in (*skip, *(only or ())):
        check_known("row of the paper's table", label, labels)
    labels = labels if only is None else list(only)
    chosen = dict.fromkeys([*(label for label in labels if label not in skip), *given])
    return {label: _networks(given.get(label, label), net=net, run="target") for label in chosen}


def _networks(text: Any, *, net: str, run: str) -> tuple[Network, ...]:
    parts = text if isinstance(text, list) else [text]
    return tuple(read_network(part, net=net, run=run) for part in parts)


def _measure(raw: Mapping[str, Any], rows: Mapping[str, object], net: str) -> Measure:
    _check_keys("measure", raw, _MEASURE_KEYS)
    name = raw.get("protocol", "")
    check_known("protocol", name, MEASURES)
    protocol = MEASURES[name]
    sources = {label: _networks(text, net=net, run=SOURCE) for label, text in _labelled(raw.get("sources", {})).items()}
    attacks = {label: read_attack(str(text)) for label, text in _labelled(raw.get("attacks", {})).items()}
    for what, given, needed in (
        ("sources", sources, protocol.sources == "needed"),
        ("attacks", attacks, protocol.attacks is not None),
        *((option, raw.get(option), protocol.takes(option)) for option in ("levels", "ks")),
    ):
        if bool(given) != needed:
            raise SpecError(f"{what} and the protocol {name} do not fit.", given, "some" if needed else "none")
    for label in [*raw.get("rows", ()), *(label for group in raw.get("groups", ()) for label in group)]:
        check_known("row", label, rows)
    settings = {"figure": protocol.figure, "rounding": protocol.rounding}
    settings |= {key: raw[key] for key in ("figure", "rounding", "confidence", "count") if key in raw}
    check_known("figure", settings["figure"], _FIGURES)
    check_known("rounding", settings["rounding"], ROUNDING.choices)
    return Measure(
        protocol=name,
        columns=_columns(str(raw.get("columns", protocol.column))),
        sources=sources,
        attacks=attacks,
        levels=tuple(map(float, raw.get("levels", ()))),
        ks=tuple(raw.get("ks", ())),
        rows=tuple(raw.get("rows", ())),
        groups=tuple(map(tuple, raw.get("groups", ()))),
        **settings,  # type: ignore[arg-type]
    )


def _columns(text: str) -> str:
    try:
        text.format_map(dict.fromkeys(_PLACES, ""))
    except (KeyError, ValueError, IndexError) as error:
        raise SpecError("The columns name something else.", text, ", ".join(f"{{{p}}}" for p in _PLACES)) from error
    return text


def _labelled(given: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    return dict(given) if isinstance(given, Mapping) else {text: text for text in given}


def _check_keys(what: str, raw: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for key in raw:
        check_known(f"key of a {what}", key, allowed)


def is_rate(figure: str) -> bool:
    """Whether a figure is a share, which tables show in percent."""
    return figure in _RATES or figure == CLEAN
