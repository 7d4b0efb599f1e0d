"""The measures of the house: ``python -m tests.house`` prints them, ``tests/test_house.py`` holds them."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dcn_plugin"

UPPER = ("cli", "experiments", "report")


def sources(*folders: str) -> dict[Path, str]:
    """Path -> text of the package's Python files, below some of its folders or below all."""
    paths = sorted(path for path in PACKAGE.rglob("*.py"))
    if folders:
        paths = [path for path in paths if path.relative_to(PACKAGE).parts[0] in folders]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def protocol_names() -> set[str]:
    """What protocols are called in recipes, in records and on the command line, but for the attacks' names."""
    from dcn_plugin.evaluate.protocols import PROTOCOLS

    return {name for protocol in PROTOCOLS.values() for name in (protocol.name, protocol.record) if name}


def quoted_protocol_names() -> list[str]:
    """Lines of the upper rooms in which the name of a protocol stands quoted."""
    pattern = re.compile("|".join(f'"{re.escape(name)}"' for name in sorted(protocol_names())))
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path, text in sources(*UPPER).items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def files_that_know(word: str) -> list[str]:
    """Files with this word as a string or a name of their own, not merely in prose."""
    return [str(path.relative_to(ROOT)) for path, text in sources().items() if word in words_of(text)]


def words_of(text: str) -> set[str]:
    """Strings, names and attributes of a file, each whole; docstrings and comments do not count."""
    tree = ast.parse(text)
    words: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.Name):
            words.add(node.id)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
        elif isinstance(node, ast.alias):
            words |= {node.name, *node.name.split(".")}
        elif isinstance(node, ast.ImportFrom):
            words |= set((node.module or "").split("."))
        elif isinstance(node, ast.FunctionDef):
            words.add(node.name)
    return words


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Room -> the rooms that it imports; rooms are the modules and folders of the package's root, and ``recipes``."""
    found: dict[str, set[str]] = {}
    for folder in ("dcn_plugin", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            room = "recipes" if folder == "recipes" else path.relative_to(PACKAGE).with_suffix("").parts[0]
            targets = set(imported_rooms(path.read_text(encoding="utf-8"))) - {room}
            found[room] = found.get(room, set()) | targets
    return found


def imported_rooms(text: str) -> Iterator[str]:
    """The rooms that a file imports from."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            modules = [node.module]
            if node.module == "dcn_plugin":
                modules = [f"dcn_plugin.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "dcn_plugin":
                room = rest.partition(".")[0]
                yield room if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists() else "__init__"


def rooms() -> set[str]:
    """All of them, the package itself as ``__init__``."""
    return set(arrows()) | {room for targets in arrows().values() for room in targets if room}


def floors() -> int:
    """The longest chain of imports from room to room."""

    @functools.cache
    def depth(room: str) -> int:
        return 1 + max((depth(target) for target in arrows().get(room, ())), default=0)

    return max(map(depth, rooms()))


def loose_modules() -> list[str]:
    """Modules in the package's root."""
    return sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def places(pattern: str) -> list[str]:
    """Files of the package in which a regular expression matches."""
    return [str(path.relative_to(ROOT)) for path, text in sources().items() if re.search(pattern, text)]


def lines() -> int:
    """Lines of the package."""
    return sum(len(text.splitlines()) for text in sources().values())


DID_YOU_MEAN = r"get_close_matches"
DERIVED_SEEDS = r"\bblake2b\("
CATCH_UP = r"\.update\([^)\n]* - \w+\.n\)"
TEXT_TABLES = r"\.ljust\("


def main() -> None:
    measures = {
        "lines with a quoted protocol name in cli, experiments, report": len(quoted_protocol_names()),
        'files that know "shuffle"': len(files_that_know("shuffle")),
        "top-level rooms": len(rooms()),
        "floors": floors(),
        "arrows between rooms": sum(map(len, arrows().values())),
        "modules loose in the root": len(loose_modules()),
        "places of did-you-mean": len(places(DID_YOU_MEAN)),
        "places of derived seeds": len(places(DERIVED_SEEDS)),
        "places of progress catch-up": len(places(CATCH_UP)),
        "places of text tables": len(places(TEXT_TABLES)),
        "lines of the package": lines(),
    }
    for name, value in measures.items():
        print(f"{value:>7}  {name}")


if __name__ == "__main__":
    main()
