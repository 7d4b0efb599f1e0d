"""The import floors of the house: a file imports only from floors below its own.

To add a room, enter it in FLOORS.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "dcn_plugin"
ROOT = Path(__file__).resolve().parent.parent / PACKAGE

# floor -> its rooms: a module, or a folder ("name/") whose files may import one another. Rooms of a floor do not import
# each other. `dcn_plugin/__init__.py` is the roof: it imports all, nobody imports it.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("support/", "specs"),
    ("masks",),
    ("layers",),
    ("surgery/",),
    ("checkpoint/", "engine/", "attacks/"),
    ("models/", "data/", "adapters/"),
    ("evaluate/",),
    ("report/", "training/", "pretrained/"),
    ("experiments/",),
    ("cli/",),
)

# The plugin puts masks into networks. The bench measures any network. The reproduction trains and compares networks as
# the paper does, and is what a user of the command meets. Adapters join the plugin and the bench to other libraries.
WINGS: dict[str, tuple[str, ...]] = {
    "plugin": ("errors", "support", "specs", "masks", "layers", "surgery", "checkpoint", "engine", "models"),
    "bench": ("attacks", "data", "evaluate", "report"),
    "reproduction": ("training", "pretrained", "experiments", "cli"),
    "adapters": ("adapters",),
}
# All that the bench takes from the plugin, but for errors and support: it measures networks without masks as well.
BENCH_TAKES = {
    "checkpoint.class_names",
    "engine.CompactModel",
    "engine.sweep.SpeedPoint",
    "surgery.wrappers.network_in",
}


PLACES = {room.rstrip("/"): floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FOLDERS = {room.rstrip("/") for rooms in FLOORS for room in rooms if room.endswith("/")}


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
    floor = PLACES[entry]
    broken = []
    for line, target in imported_modules(source, module, is_package=is_package):
        other = entry_of(target)
        if not target:
            broken.append(f"{module}:{line} imports the package itself; import the defining module")
        elif other is None:
            broken.append(f"{module}:{line} imports {target}, which is on no floor")
        elif other != entry and PLACES[other] >= floor:
            broken.append(f"{module} (F{floor}):{line} imports {target} (F{PLACES[other]}), not a floor below")
        elif other == entry and entry not in FOLDERS:
            broken.append(f"{module}:{line} imports itself")
    return broken


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_floors_below_its_own(path: Path) -> None:
    found = violations(path.read_text(encoding="utf-8"), module_of(path), is_package=path.name == "__init__.py")
    assert not found, "\n".join(found)


def test_no_entry_stands_in_the_table_twice() -> None:
    rooms = [room for floor in FLOORS for room in floor]
    assert len(rooms) == len(set(rooms)) == len(PLACES)
    assert sorted(room for rooms in WINGS.values() for room in rooms) == sorted(PLACES)


def taken_from_plugin(source: str) -> set[str]:
    """What a file takes from the plugin, as it stands in BENCH_TAKES."""
    plugin = set(WINGS["plugin"]) - {"errors", "support"}
    taken = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
            module = str(node.module)[len(PACKAGE) + 1 :]
            if module.partition(".")[0] in plugin:
                taken |= {module} & BENCH_TAKES or {f"{module}.{alias.name}" for alias in node.names}
    return taken


def test_the_bench_measures_any_network() -> None:
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] in WINGS["bench"]]
    assert set().union(*(taken_from_plugin(path.read_text(encoding="utf-8")) for path in files)) == BENCH_TAKES


def test_only_the_reproduction_knows_the_reproduction() -> None:
    for path in FILES:
        module = module_of(path)
        if module and entry_of(module) not in WINGS["reproduction"]:
            source = path.read_text(encoding="utf-8")
            imported = imported_modules(source, module, is_package=path.name == "__init__.py")
            assert not {entry_of(target) for _, target in imported} & {*WINGS["reproduction"]}, module


def test_the_root_holds_what_a_user_imports_and_nothing_else_is_loose() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", "errors", "specs", "masks", "layers"}


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
        ("surgery.trace", "from dcn_plugin.checkpoint.network import read_info"),
        ("surgery", "from dcn_plugin.checkpoint import load_checkpoint"),
        ("attacks.pgd", "from dcn_plugin.data.digits import load_digits"),
        ("attacks.pgd", "from ..data import digits"),
        ("evaluate.session", "from dcn_plugin.training import fit"),
        ("evaluate.session", "from dcn_plugin.report.html import render"),
        ("evaluate.session", "from dcn_plugin.nowhere import thing"),
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
        ("surgery.blocks", "from dcn_plugin.surgery.sites import Site\nfrom dcn_plugin.surgery.trace import trace"),
        ("evaluate.session", "from dcn_plugin.evaluate.records import Result\nfrom .records import Result"),
        ("evaluate.session", "from dcn_plugin.attacks import pgd\nfrom ..attacks.pgd import PGD"),
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
