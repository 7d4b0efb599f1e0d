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
from dcn_plugin.evaluate.run_directory import RESULTS, run_folders, stored_units
from dcn_plugin.report.pages import Report
from dcn_plugin.support.number_format import listed

__all__ = ["load_run"]

_log = logging.getLogger(__name__)


def load_run(path: str | os.PathLike[str], *, title: str | None = None, baseline: str | None = None) -> Report:
    """Read the records of a run into a report, without its images (see :func:`adversarial_grids`).

    Args:
        path: a run directory, a results file, or a folder of several run directories, however deep. A run that was
            stopped before it wrote ``results.json`` gives the measurements that it finished, beside the records of
            runs that ended in the same folder; a file that is damaged is left out, with a warning in the log.
        title: of the report; by default the name of the folder.
        baseline: name of the target that the others are held against; None: nothing is compared.

    Raises:
        DataError: nothing of the kind is there.
        RecordError: a results file is damaged or of another schema and nothing else is there, ``baseline`` was not
            measured, or two folders hold different records of the same measurement.
    """
    where = Path(path)
    parts = [_read_file(where)] if where.is_file() else [_read_folder(folder) for folder in run_folders(where)]
    # Runs may share records, where one was copied from the other.
    results = _without_copies(result for part in parts for result in part.results)
    if not results:
        raise DataError(
            "There are no results to report.",
            str(where),
            "a run directory with results.json or units/, a results file, or a folder of run directories",
            "run 'defective evaluate' first; a run that was stopped before it had finished a measurement needs its "
            "command again",
        )
    targets = list(dict.fromkeys(result.target for result in results))
    if baseline is not None and baseline not in targets:
        raise RecordError("The baseline was not measured.", baseline, ", ".join(targets))
    intro = []
    if unfinished := [part.path for part in parts if not part.complete]:
        intro.append(
            f"Not finished: {listed(path.name for path in unfinished)}. This report shows the measurements that are "
            "done; the same command goes on from there."
        )
    if waiting := sum(part.waiting for part in parts):
        intro.append(
            f"Newer measurements of a run that was stopped, not shown: {waiting}. The finished ones of the same "
            "settings are; run its command again to finish it."
        )
    name = where.resolve().stem if where.is_file() else where.resolve().name
    return Report(title or f"Results: {name}", results, baseline, intro, _facts(results, parts))


@dataclass(frozen=True)
class _Part:
    """One run.

    Args:
        path: of its folder or file.
        results: its records.
        complete: False if a run was stopped.
        finished: when it ended, if it says so.
        waiting: how many of its finished measurements another run has begun to replace.
    """

    path: Path
    results: Sequence[Result]
    complete: bool = True
    finished: str = ""
    waiting: int = 0


def _read_folder(folder: Path) -> _Part:
    """What ended, and what was measured by runs that did not; of two measurements of a setting the one that ended."""
    file, units = folder / RESULTS, stored_units(folder)
    ended = None
    if file.is_file():
        try:
            ended = _read_file(file)
        except RecordError as error:
            if not units:
                raise
            _log.warning("%s is left out: it cannot be read (%s)", file, error)
    since = file.stat().st_mtime_ns if ended is not None else 0
    first = {} if ended is None else {result.setting: result for result in ended.results}
    more: dict[object, Result] = {}
    waiting: dict[object, bool] = {}
    for unit in units:
        for result in unit.results():
            if result.setting not in first:
                more[result.setting] = result
            else:
                waiting[result.setting] = unit.written > since and result != first[result.setting]
    complete, finished = ended is not None and not more, "" if ended is None else ended.finished
    return _Part(folder, [*first.values(), *more.values()], complete, finished, sum(waiting.values()))


def _read_file(file: Path) -> _Part:
    read = ResultFile.read(file)
    return _Part(file, read.results, finished=str(read.run.get("finished") or read.run.get("created") or ""))


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
