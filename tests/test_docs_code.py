"""The Python blocks of the README and the docs run as they stand, page by page from top to bottom."""

import importlib.util
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"^<!-- needs: ([\w ]+) -->$", re.MULTILINE)


def missing(text: str) -> list[str]:
    """The libraries that a page says it needs, and that are not installed."""
    named = [name for line in NEEDS.findall(text) for name in line.split()]
    return [name for name in named if importlib.util.find_spec(name) is None]


def blocks(page: Path) -> list[str]:
    """Those in tabs, which are indented, too. Tutorials are scripts of their own: `make docs` runs them."""
    return [textwrap.dedent(code) for _, code in BLOCK.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_code_on_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if absent := missing(page.read_text(encoding="utf-8")):
        pytest.skip(f"{', '.join(absent)} is not installed")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), namespace)


def test_the_readme_has_code_to_run() -> None:
    assert blocks(ROOT / "README.md")


def test_code_in_tabs_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text('=== "One"\n\n    ```python\n    if True:\n        x = 1\n    ```\n\n```python\ny = 2\n```\n')
    assert blocks(page) == ["if True:\n    x = 1\n", "y = 2\n"]


def test_a_page_is_left_out_for_a_library_that_it_names_and_that_is_not_there() -> None:
    assert missing("<!-- needs: torch no_such_library -->\n\n# Title\n") == ["no_such_library"]
    assert missing("# Title\n") == []
    named = {page.stem: NEEDS.findall(page.read_text(encoding="utf-8")) for page in PAGES}
    assert {stem: found for stem, found in named.items() if found} == {
        "art": ["art"],
        "foolbox": ["foolbox"],
        "secml-torch": ["secmlt"],
    }
