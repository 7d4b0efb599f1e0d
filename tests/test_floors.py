"""The import floors of the house: a file imports only from floors below its own.

To add a file, enter it in FLOORS. To let one file of a floor import another of that floor, put both in one
chain.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "dcn_plugin"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

# floor -> chains. A chain is an order: an entry may import the entries to its left. "name/" is a folder,
# whose files may import one another. `dcn_plugin/__init__.py` is the roof: it imports all, nobody imports it.
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "F0": (("errors", "specs", "files"), ("logs",), ("startup",)),
    "F1": (("masks",), ("archive",)),
    "F2": (
        (
            "copies",
            "parametrized",
            "instance_norm",
            "norms",
            "convs",
            "layers",
            "wrappers",
            "classes",
            "trace",
            "independence",
            "reach",
            "follow",
            "sites",
            "blocks",
            "selection",
        ),
    ),
    "F3": (("surgery", "inspection", "checkpoint", "weights", "engine/"),),
    "F4": (("models/",), ("data/",), ("attacks/",)),
    "F5": (("evaluate/", "training/", "pretrained/"), ("adapters/",)),
    "F6": (("report/",), ("experiments/",)),
    "F7": (("cli/",),),
}


class Place(NamedTuple):
    """Where an entry stands: its floor, its chain on that floor, its position in the chain."""

    floor: int
    chain: int
    position: int


PLACES = {
    entry.rstrip("/"): Place(floor, chain, position)
    for floor, chains in enumerate(FLOORS.values())
    for chain, entries in enumerate(chains)
    for position, entry in enumerate(entries)
}
FOLDERS = {
    entry.rstrip("/") for chains in FLOORS.values() for entries in chains for entry in entries if entry.endswith("/")
}


def module_of(path: Path) -> str:
    """`dcn_plugin/evaluate/protocols/transfer.py` -> `evaluate.transfer`; `dcn_plugin/__init__.py` -> ``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def entry_of(module: str) -> str | None:
    """The entry of FLOORS that a module belongs to, if there is one."""
    head, _, rest = module.partition(".")
    if head not in PLACES or (rest and head not in FOLDERS):
        return None
    return head


def imported_modules(source: str, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and target of every import of this package, wherever in the file; the roof is ``."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = [PACKAGE, *(module.split(".") if module else [])]
                parents = here[: len(here) - node.level + (1 if is_package else 0)]
                base = ".".join([*parents, *([base] if base else [])])
            # `from dcn_plugin import errors` is a module; `from dcn_plugin import defectify` is the roof.
            names = (
                [f"{PACKAGE}.{a.name}" if a.name in PLACES else PACKAGE for a in node.names]
                if base == PACKAGE
                else [base]
            )
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                names = [str(first.value)]
        for name in names:
            if name == PACKAGE or name.startswith(PACKAGE + "."):
                yield node.lineno, name[len(PACKAGE) + 1 :]


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Every import of `source` that the floors forbid, as sentences."""
    if not module:
        return []
    entry = entry_of(module)
    if entry is None:
        return [f"{module} is on no floor: enter it in FLOORS of tests/test_floors.py"]
    own = PLACES[entry]
    found = []
    for line, target in imported_modules(source, module, is_package=is_package):
        other = entry_of(target)
        if not target:
            found.append(f"{module}:{line} imports the package itself; import the defining module")
        elif other is None:
            found.append(f"{module}:{line} imports {target}, which is on no floor")
        elif other != entry:
            place = PLACES[other]
            below = place.floor < own.floor
            earlier = place[:2] == own[:2] and place.position < own.position
            if not (below or earlier):
                found.append(f"{module} (F{own.floor}):{line} imports {target} (F{place.floor}), not a floor below")
        elif entry not in FOLDERS:
            found.append(f"{module}:{line} imports itself")
    return found


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_floors_below_its_own(path: Path) -> None:
    found = violations(path.read_text(encoding="utf-8"), module_of(path), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_no_entry_stands_in_the_table_twice() -> None:
    entries = [entry for chains in FLOORS.values() for chain in chains for entry in chain]
    assert len(entries) == len(set(entries)) == len(PLACES)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("masks", "from dcn_plugin.surgery import defectify"),
        ("masks", "import dcn_plugin.layers as layers"),
        ("masks", "from dcn_plugin import layers"),
        ("masks", "from .layers import DefectMask2d"),
        ("masks", "from . import layers"),
        ("masks", "import importlib\nimportlib.import_module('dcn_plugin.layers')"),
        ("masks", "def late():\n    from dcn_plugin.cli import main"),
        ("masks", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dcn_plugin.layers import X"),
        ("surgery", "import dcn_plugin"),
        ("surgery", "from dcn_plugin import defectify"),
        ("errors", "from dcn_plugin.specs import MaskSpec"),
        ("layers", "from dcn_plugin.surgery.sites import find_sites"),
        ("trace", "from dcn_plugin.surgery.blocks import blocks_of"),
        ("surgery", "from dcn_plugin.checkpoint import load_checkpoint"),
        ("attacks.pgd", "from dcn_plugin.data.digits import load_digits"),
        ("attacks.pgd", "from ..data import digits"),
        ("evaluate.transfer", "from dcn_plugin.training import fit"),
        ("evaluate.transfer", "from dcn_plugin.report.html import render"),
        ("evaluate.transfer", "from dcn_plugin.nowhere import thing"),
        ("nowhere", "import torch"),
        ("errors.sub", "import torch"),
    ],
)
def test_the_checker_reports_a_forbidden_import(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("specs", "from dcn_plugin.errors import SpecError"),
        ("masks", "import torch\nfrom dcn_plugin import errors, specs"),
        ("blocks", "from dcn_plugin.surgery.sites import Site\nfrom dcn_plugin.surgery.trace import trace"),
        ("evaluate.transfer", "from dcn_plugin.evaluate.records import Result\nfrom .records import Result"),
        ("evaluate.transfer", "from dcn_plugin.attacks import pgd\nfrom ..attacks.pgd import PGD"),
        ("cli", "def main():\n    from dcn_plugin.experiments.demo import run"),
        ("cli", "import dcn_plugin_other"),
        ("", "from dcn_plugin.surgery import defectify\nfrom dcn_plugin.models import defective"),
    ],
)
def test_the_checker_accepts_an_allowed_import(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_a_relative_import_in_a_package_file_counts_from_that_package() -> None:
    assert violations("from .records import Result", "evaluate", is_package=True) == []
    assert len(violations("from ..report import html", "evaluate", is_package=True)) == 1
