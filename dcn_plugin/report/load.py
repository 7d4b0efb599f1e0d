"""From a run directory to a report: finished runs, killed runs, several at once."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dcn_plugin.errors import DataError, RecordError
from dcn_plugin.evaluate import Result, ResultFile
from dcn_plugin.report.build import Report
from dcn_plugin.report.texts import listed

__all__ = ["load_run", "run_folders"]

_log = logging.getLogger(__name__)


def load_run(path: str | os.PathLike[str], *, title: str | None = None, baseline: str | None = None) -> Report:
    """Read the records of a run into a report, without its images (see :func:`adversarial_grids`).

    Args:
        path: a run directory, a results file, or a folder of several run directories, however deep. A run that was
            killed before it wrote ``results.json`` gives the measurements that it finished.
        title: of the report; by default the name of the folder.
        baseline: name of the target that the others are held against; None: nothing is compared.

    Raises:
        DataError: nothing of the kind is there.
        RecordError: a results file is damaged or of another schema, ``baseline`` was not measured, or two runs hold
            different records of the same measurement.
    """
    where = Path(path)
    parts = [_finished(where)] if where.is_file() else [_read_folder(folder) for folder in run_folders(where)]
    # Runs may share records, where one was copied from the other.
    results = _without_copies(result for part in parts for result in part.results)
    if not results:
        raise DataError(
            "There are no results to report.",
            str(where),
            "a run directory with results.json or units/, a results file, or a folder of run directories",
            "run 'defective evaluate' first",
        )
    targets = list(dict.fromkeys(result.target for result in results))
    if baseline is not None and baseline not in targets:
        raise RecordError("The baseline was not measured.", baseline, ", ".join(targets))
    unfinished = [part.path for part in parts if not part.whole]
    intro = [
        f"Not finished: {listed(path.name for path in unfinished)}. This report shows the measurements that are done; "
        "the same command goes on from there."
    ]
    name = where.resolve().stem if where.is_file() else where.resolve().name
    return Report(title or f"Results: {name}", results, baseline, intro if unfinished else [], _facts(results, parts))


def run_folders(path: Path) -> list[Path]:
    """The run directories at and below a folder, in the order of their names; those within one are not searched."""
    if (path / "results.json").is_file() or any((path / "units").glob("*.json")):
        return [path]
    children = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    return [found for child in children for found in run_folders(child)]


@dataclass(frozen=True)
class _Part:
    """One run.

    Args:
        path: of its folder or file.
        results: its records.
        whole: False if the run was killed.
        finished: when it ended, if it says so.
    """

    path: Path
    results: Sequence[Result]
    whole: bool = True
    finished: str = ""


def _read_folder(folder: Path) -> _Part:
    file = folder / "results.json"
    return _finished(file) if file.is_file() else _killed(folder)


def _finished(file: Path) -> _Part:
    read = ResultFile.read(file)
    return _Part(file, read.results, finished=str(read.run.get("finished") or read.run.get("created") or ""))


def _killed(folder: Path) -> _Part:
    # In the order in which they were measured: the names are digests.
    files = sorted((folder / "units").glob("*.json"), key=lambda file: (file.stat().st_mtime_ns, file.name))
    results: list[Result] = []
    for file in files:
        try:
            results += map(Result.from_dict, json.loads(file.read_bytes())["results"])
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("%s is left out: it cannot be read (%s)", file, error)
    return _Part(folder, results, whole=False)


def _without_copies(results: Iterable[Result]) -> list[Result]:
    unique = {json.dumps(result.to_dict(), sort_keys=True): result for result in results}
    return list(unique.values())


def _facts(results: Sequence[Result], parts: Sequence[_Part]) -> dict[str, str]:
    def machine(result: Result) -> str:
        return ", ".join(f"{key}: {value}" for key, value in result.hardware.items())

    def versions(result: Result) -> str:
        return ", ".join(f"{key} {value}" for key, value in result.versions.items())

    facts = {
        "Records": str(len(results)),
        "Images": listed(f"{result.data} (SHA-256 {result.data_hash[:16]})" for result in results),
        "Seeds": listed(sorted({result.seed for result in results}), most=20),
        "Versions": listed(map(versions, results), most=3),
        "Machine": listed(map(machine, results), most=3),
        "Finished": listed((part.finished for part in parts if part.finished), most=3),
    }
    return {key: value for key, value in facts.items() if value}
