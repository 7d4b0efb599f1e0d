"""Tutorials: plain Python scripts in percent format, run as they stand and shown with what they printed.

A cell starts with ``# %%`` (code) or ``# %% [markdown]`` (text in comments). Text may show a picture or link a file
that the code has written into its working folder: ``![what it shows](plot.png)``. Such files come along.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from docs._build.folders import ROOT

__all__ = ["Cell", "page_of", "read_cells", "run_tutorial"]

_MARK = re.compile(r"^# %%(.*)$")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:]+)\)")


@dataclass(frozen=True)
class Cell:
    """One cell; ``line`` is the first line of its text in the script, from 1."""

    kind: Literal["code", "markdown"]
    text: str
    line: int


def read_cells(source: str) -> list[Cell]:
    """Cut a script into cells.

    Raises:
        ValueError: there is code in front of the first mark, or a line of a text cell is no comment.
    """
    cells: list[Cell] = []
    kind, lines, start = "", [], 1  # type: str, list[str], int
    for number, line in enumerate([*source.splitlines(), "# %%"], start=1):
        mark = _MARK.match(line)
        if mark is None:
            lines.append(line)
            continue
        if kind:
            cells.append(_cell(kind, lines, start))
        elif any(part.strip() for part in lines):
            raise ValueError(f"line {start}: a tutorial starts with '# %%' or '# %% [markdown]'")
        kind, lines, start = ("markdown" if "[markdown]" in mark[1] else "code"), [], number + 1
    return [cell for cell in cells if cell.text]


def _cell(kind: str, lines: list[str], start: int) -> Cell:
    while lines and not lines[0].strip():
        lines, start = lines[1:], start + 1
    if kind == "code":
        return Cell("code", "\n".join(lines).rstrip(), start)
    for number, line in enumerate(lines, start=start):
        if line.strip() and not line.startswith("#"):
            raise ValueError(f"line {number}: a text cell holds comments only")
    return Cell("markdown", "\n".join(re.sub("^# ?", "", line) for line in lines).rstrip(), start)


def page_of(script: Path, files: Path) -> str:
    """Run a script's cells in the working folder and write them down as Markdown.

    Args:
        script: the tutorial.
        files: the files that its texts link are copied there.

    Raises:
        ValueError: a picture has no alternative text.
    """
    namespace: dict[str, object] = {"__name__": "__main__"}
    parts = []
    for cell in read_cells(script.read_text(encoding="utf-8")):
        if cell.kind == "markdown":
            parts.append(_LINK.sub(lambda link: _linked(link, files), cell.text))
            continue
        # Blank lines in front, so that a traceback names the line of the script.
        code = compile("\n" * (cell.line - 1) + cell.text, str(script), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            exec(code, namespace)
        parts.append(f"```python\n{cell.text}\n```")
        if output := printed.getvalue().rstrip():
            parts.append(f'```text title="output"\n{output}\n```')
    parts.append(f"*This page is [a script]({script.name}); its outputs are from the run that built this site.*")
    return "\n\n".join(parts) + "\n"


def _linked(link: re.Match[str], files: Path) -> str:
    picture, text, target = link.groups()
    if picture and not text:
        raise ValueError(f"the picture {target} has no alternative text")
    if not Path(target).is_file():
        return link[0]  # a page of the site; mkdocs checks it
    files.mkdir(parents=True, exist_ok=True)
    shutil.copy(target, files / Path(target).name)
    return f"{picture}[{text}]({files.name}/{Path(target).name})"


def run_tutorial(script: Path, out: Path) -> None:
    """Run a tutorial in a process and an empty folder of its own; warnings are errors.

    Args:
        script: ``.../NAME.py``.
        out: ``NAME.md`` and the folder ``NAME`` with the files it links are written there.

    Raises:
        RuntimeError: the script failed; its last lines of output are in the message.
    """
    out.mkdir(parents=True)
    command = [sys.executable, "-W", "error", "-m", "docs._build.tutorials", str(script.resolve()), str(out.resolve())]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr[-4000:]}")


if __name__ == "__main__":
    _script, _out = Path(sys.argv[1]), Path(sys.argv[2])
    (_out / f"{_script.stem}.md").write_text(page_of(_script, _out / _script.stem), encoding="utf-8")
