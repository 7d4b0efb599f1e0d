"""Tutorials: cut into cells, run as they stand, never shown with the output of other code."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from docs._build.cache import cached, fingerprint
from docs._build.folders import DOCS
from docs._build.tutorials import Cell, page_of, read_cells, run_tutorial

TUTORIALS = sorted((DOCS / "tutorials").glob("*.py"))

SCRIPT = """# %% [markdown]
# # A title
#
# Two ways to say it.

# %%
x = 20 + 1
print(x)

# %%
from pathlib import Path

Path("plot.png").write_bytes(b"png")
y = 2 * x

# %% [markdown]
# ![what it shows](plot.png) and [a page](../index.md)

# %%
import sys

print(y, file=sys.stderr)
"""


def script(folder: Path, text: str = SCRIPT) -> Path:
    path = folder / "toy.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_script_is_cut_into_text_and_code() -> None:
    cells = read_cells("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\n\nx = 1\n\n\n# %%\ny = 2\n")
    assert cells == [
        Cell("markdown", "# Title\n\nText.", 2),
        Cell("code", "x = 1", 8),
        Cell("code", "y = 2", 12),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [("x = 1\n# %%\n", "starts with"), ("# %% [markdown]\nx = 1\n", "line 2: a text cell")],
    ids=["code in front", "code in a text cell"],
)
def test_a_script_that_is_no_tutorial_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_cells(text)


def test_a_page_shows_code_what_it_printed_and_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = page_of(script(tmp_path), tmp_path / "toy")
    assert page.startswith("# A title\n\nTwo ways to say it.\n\n```python\nx = 20 + 1\nprint(x)\n```\n\n")
    assert '```text title="output"\n21\n```' in page
    assert '```text title="output"\n42\n```' in page, "what goes to stderr is shown, too"
    assert "![what it shows](toy/plot.png) and [a page](../index.md)" in page
    assert (tmp_path / "toy" / "plot.png").read_bytes() == b"png"


def test_a_picture_without_alternative_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"plot\.png has no alternative text"):
        page_of(script(tmp_path, SCRIPT.replace("![what it shows]", "![]")), tmp_path / "toy")


@pytest.mark.parametrize(
    ("code", "says"),
    [("1 / 0", r"toy\.py\", line 3"), ("import warnings\n\nwarnings.warn('old')", "UserWarning: old")],
    ids=["an error", "a warning"],
)
def test_a_tutorial_that_fails_fails_the_build(code: str, says: str, tmp_path: Path) -> None:
    path = script(tmp_path, f"# %%\nx = 1\n{code}\n")
    with pytest.raises(RuntimeError, match=says):
        run_tutorial(path, tmp_path / "out")


def make(text: str, calls: list[str]):
    def write(out: Path) -> None:
        calls.append(text)
        out.mkdir()
        (out / "page.md").write_text(text)

    return write


def test_a_result_is_reused_until_its_key_changes(tmp_path: Path) -> None:
    calls: list[str] = []
    first = cached("one", "a" * 64, make("first", calls), tmp_path)
    again = cached("one", "a" * 64, make("again", calls), tmp_path)
    cached("one-more", "a" * 64, make("other", calls), tmp_path)
    changed = cached("one", "b" * 64, make("changed", calls), tmp_path)
    assert calls == ["first", "other", "changed"]
    assert first == again and not first.exists(), "a result under an old key is removed"
    assert (changed / "page.md").read_text() == "changed"
    assert (tmp_path / f"one-more-{'a' * 20}").exists()


def test_nothing_is_kept_of_a_result_that_failed(tmp_path: Path) -> None:
    def fail(out: Path) -> None:
        out.mkdir()
        (out / "half.md").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        cached("one", "a" * 64, fail, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_key_covers_the_tutorial_and_the_whole_package(tmp_path: Path) -> None:
    package, source = tmp_path / "package", tmp_path / "toy.py"
    (package / "engine").mkdir(parents=True)
    parts = {source: "x = 1", package / "a.py": "a = 1", package / "engine" / "kernel.c": "int x;"}
    parts[package / "net.safetensors"] = "weights"
    for path, text in parts.items():
        path.write_text(text)
    keys = [fingerprint([source], package)]
    for path, text in parts.items():
        path.write_text(f"{text} ")
        keys.append(fingerprint([source], package))
        path.write_text(text)
    assert len(set(keys)) == 5
    assert fingerprint([source], package) == keys[0]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_starts_with_its_title_and_is_python(path: Path) -> None:
    cells = read_cells(path.read_text(encoding="utf-8"))
    assert cells[0].text.startswith("# ")
    for cell in cells:
        if cell.kind == "code":
            ast.parse(cell.text)
