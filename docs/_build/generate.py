"""Write everything of the documentation that is not written by hand: ``python -m docs._build.generate``.

Runs in the project's environment, before mkdocs. What takes long is kept until its source, the package or a library changes.
"""

from __future__ import annotations

import fcntl
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dcn_plugin.experiments.recipe import further_records
from docs._build.cache import cached, fingerprint
from docs._build.cli_reference import cli_page
from docs._build.demo import demo_snippet, run_demo
from docs._build.folders import CACHE, DOCS, OUT, PACKAGE, PAGES, RECIPES, SNIPPETS
from docs._build.mask_picture import make_picture
from docs._build.measurements import adaptive_table, measured_pages, modern_table, whitebox_table
from docs._build.paper_map import paper_pages
from docs._build.tutorials import run_tutorial

__all__ = ["generate"]

_HERE = Path(__file__).parent
_JOBS = 2


def generate() -> None:
    """Write ``build/docs``: pages, and snippets that pages include. One process at a time."""
    with _alone():
        kept = _long_results()
        for folder in (PAGES, SNIPPETS):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for name, result in kept.items():
            place = {"demo": PAGES / "demo", "picture": PAGES / "assets"}.get(name, PAGES / "tutorials")
            shutil.copytree(result, place, dirs_exist_ok=True)
        (SNIPPETS / "demo.md").write_text(demo_snippet(kept["demo"], link="demo"), encoding="utf-8")
        for name, table, recipe in (
            ("whitebox", whitebox_table, "art_evaluation"),
            ("adaptive", adaptive_table, "art_evaluation"),
            ("modern", modern_table, "modern_transfer"),
        ):
            (SNIPPETS / f"{name}.md").write_text(table(RECIPES / recipe / "record.json"), encoding="utf-8")
        (PAGES / "cli.md").write_text(cli_page(), encoding="utf-8")
        measured_pages(RECIPES, PAGES / "measured")
        _paper_map(PAGES / "paper")


def _paper_map(out: Path) -> None:
    (out / "records").mkdir(parents=True)
    for name, text in paper_pages(RECIPES).items():
        (out / name).write_text(text, encoding="utf-8")
        recipe = Path(name).stem
        records = {recipe: RECIPES / recipe / "record.json"}
        records |= {f"{recipe}-{scale}": RECIPES / recipe / scale / "record.json" for scale in further_records(RECIPES / recipe)}
        for record, file in records.items():
            if file.is_file():
                shutil.copy(file, out / "records" / f"{record}.json")


def _long_results() -> dict[str, Path]:
    """Name -> folder of every result that takes long; the longest first."""
    jobs: dict[str, tuple[list[Path], Callable[[Path], None]]] = {
        "demo": ([_HERE / "demo.py"], run_demo),
        "picture": ([_HERE / "mask_picture.py"], make_picture),
    }
    for script in sorted((DOCS / "tutorials").glob("*.py")):
        jobs[f"tutorial-{script.stem}"] = ([script, _HERE / "tutorials.py"], partial(run_tutorial, script))
    with ThreadPoolExecutor(_JOBS) as pool:
        futures = {name: pool.submit(_one, name, *job) for name, job in jobs.items()}
        return {name: future.result() for name, future in futures.items()}


def _one(name: str, sources: list[Path], make: Callable[[Path], None]) -> Path:
    def told(out: Path) -> None:
        start = time.perf_counter()
        make(out)
        print(f"docs: made {name} in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    return cached(name, fingerprint(sources, PACKAGE), told, CACHE)


@contextmanager
def _alone() -> Iterator[None]:
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    generate()
