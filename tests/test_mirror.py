"""Every module of some size has a test file of its own name: ``engine/plan.py`` is tested in ``engine/test_plan.py``.

A private module ``_x.py`` is mirrored by ``test_x.py``. Whoever changes a module finds its tests without a search, and
a module without any is noticed.
"""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "dcn_plugin"

#: Lines from which on a module needs a test file of its own.
LARGE = 120

#: Module -> why its tests stand elsewhere.
EXCEPTIONS: dict[str, str] = {}


def mirror_of(module: str) -> str:
    """The test file of a module, both relative to their folders."""
    folder, _, name = module.rpartition("/")
    return f"{folder}/test_{name.lstrip('_')}".lstrip("/")


def unmirrored(package: Path, tests: Path) -> list[str]:
    """Large modules without a test file of their name that holds a test."""
    large = [path for path in package.rglob("*.py") if len(path.read_text(encoding="utf-8").splitlines()) > LARGE]
    modules = sorted(path.relative_to(package).as_posix() for path in large)
    return [module for module in modules if not _has_test(tests / mirror_of(module))]


def _has_test(path: Path) -> bool:
    return path.is_file() and "\ndef test_" in path.read_text(encoding="utf-8")


def test_every_large_module_has_a_test_file_of_its_name() -> None:
    missing = set(unmirrored(PACKAGE, TESTS)) - EXCEPTIONS.keys()
    assert not missing, "\n".join(f"dcn_plugin/{module} has no tests/{mirror_of(module)}" for module in sorted(missing))


def test_an_exception_is_a_large_module_without_such_a_file_and_has_a_reason() -> None:
    assert EXCEPTIONS.keys() <= set(unmirrored(PACKAGE, TESTS))
    assert all(EXCEPTIONS.values())


def test_a_module_without_a_test_is_found_and_one_with_a_private_name_finds_its_own(tmp_path: Path) -> None:
    long, tests = "x = 1\n" * (LARGE + 1), tmp_path / "tests"
    for name, text in {"plan.py": long, "sub/_table.py": long, "sub/empty.py": long, "short.py": "x = 1\n"}.items():
        (tmp_path / "package" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / name).write_text(text)
    (tests / "sub").mkdir(parents=True)
    (tests / "sub" / "test_table.py").write_text("import x\n\n\ndef test_it() -> None: ...\n")
    (tests / "sub" / "test_empty.py").write_text("import x\n")
    assert unmirrored(tmp_path / "package", tests) == ["plan.py", "sub/empty.py"]
