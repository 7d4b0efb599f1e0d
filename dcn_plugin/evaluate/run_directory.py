"""A run directory: finished measurements and adversarial images, each under the key of what it depends on.

::

    DIR/results.json            the records of all runs that ended, and what they were run with
    DIR/units/<digest>.json     one finished measurement: its key and its records
    DIR/sets/<digest>/key.json  what a set of adversarial images was made from
    DIR/sets/<digest>/<first>.safetensors  one batch of it

Every file is whole or not there, so a run that is killed at any moment goes on where it stopped and ends with the
same ``results.json``, but for its ``run`` entry.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate.cache_keys import Key, digest
from dcn_plugin.evaluate.locks import locked
from dcn_plugin.evaluate.records import Result, ResultFile
from dcn_plugin.support.atomic_file import check_output, remove_leftovers, write_atomic

__all__ = ["RunDirectory", "add_results"]

_log = logging.getLogger(__name__)


class RunDirectory:
    """A folder that remembers what was measured.

    Args:
        path: of the folder; it is made when the first result comes.
        fresh: reuse nothing; what is there is replaced as it is measured again.

    Raises:
        DataError: ``path`` is a file.
        OutputError: files cannot be written into it.

    Example:
        >>> store = RunDirectory("results")
        >>> records = list(whitebox({"net": net}, [PGD(eps=8 / 255)], data, training_seed=0, store=store))
        >>> store.measured, store.reused
        (1, 0)
    """

    def __init__(self, path: str | os.PathLike[str], *, fresh: bool = False) -> None:
        self.path, self.fresh = Path(path), fresh
        #: Units of this run that were there already, and units that were measured.
        self.reused = self.measured = 0
        check_output(self.path)
        for inner in (self.path / "units", *self.path.glob("sets/*")):
            remove_leftovers(inner)

    def read_unit(self, key: Key) -> Sequence[Result] | None:
        """The records under a key, or None. A file that is damaged or of another schema counts as not there."""
        if self.fresh:
            return None
        path = self._unit_path(key)
        try:
            raw = json.loads(path.read_bytes())
            if raw["key"] != json.loads(json.dumps(key)):
                return None
            results = tuple(map(Result.from_dict, raw["results"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecordError) as error:
            _log.warning("%s is measured again: it cannot be read (%s)", path, error)
            return None
        self.reused += 1
        return results

    def write_unit(self, key: Key, results: Iterable[Result]) -> None:
        """Keep the records of one measurement."""
        content = {"key": key, "results": [result.to_dict() for result in results]}
        write_atomic(self._unit_path(key), json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
        self.measured += 1

    def read_batch(self, key: Key, first: int) -> dict[str, Tensor] | None:
        """One batch of a set of images, or None. A damaged file counts as not there."""
        path = self._batch_path(key, first)
        if self.fresh or not path.exists():
            return None
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            _log.warning("%s is made again: it cannot be read (%s)", path, error)
            return None

    def write_batch(self, key: Key, first: int, tensors: Mapping[str, Tensor]) -> None:
        """Keep one batch of a set of images, and its key beside it."""
        path = self._batch_path(key, first)
        described = path.with_name("key.json")
        if not described.exists():
            write_atomic(described, json.dumps(key, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        write_atomic(path, safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def finish(self, spec: Mapping[str, Any], results: Sequence[Result]) -> ResultFile:
        """Write ``results.json``; what it holds of other settings stays in it. Several runs may do so at once.

        Args:
            spec: the settings that led to the results, as JSON values.
            results: all records of this run, in order. Each replaces that of the same :attr:`Result.setting`.
        """
        name = ", ".join(dict.fromkeys(sorted(map(_run_name, results))))
        run = {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "units_measured": self.measured,
            "units_reused": self.reused,
        }
        return add_results(self.path / "results.json", {"runs": {name: dict(spec)}}, results, run)

    def _unit_path(self, key: Key) -> Path:
        return self.path / "units" / f"{digest(key)}.json"

    def _batch_path(self, key: Key, first: int) -> Path:
        return self.path / "sets" / digest(key) / f"{first:010d}.safetensors"


def add_results(
    path: str | os.PathLike[str], spec: Mapping[str, Any], results: Sequence[Result], run: Mapping[str, Any]
) -> ResultFile:
    """Write a results file; what it holds of other settings stays in it.

    Args:
        path: of the file. One that cannot be read is written anew, and the log says so.
        spec: the settings that led to the results. Where earlier records stay, ``{"runs": {name: settings}}`` of all.
        results: the records. Each takes the place of that of the same :attr:`Result.setting`.
        run: what differs from one run of the same spec to the next.
    """
    path = Path(path)
    with locked(path):
        old = _read_earlier(path)
        new = {result.setting for result in results}
        kept = [result for result in old.results if result.setting not in new]
        records = {result.setting: result for result in (*old.results, *results)}
        whole = ResultFile(_both(old.spec, spec, kept) if kept else spec, tuple(records.values()), run)
        whole.write(path)
    return whole


def _read_earlier(path: Path) -> ResultFile:
    try:
        return ResultFile.read(path)
    except FileNotFoundError:
        pass
    except RecordError as error:
        _log.warning("%s is written anew: it cannot be read (%s)", path, error)
    return ResultFile({}, ())


def _both(old: Mapping[str, Any], new: Mapping[str, Any], kept: Sequence[Result]) -> dict[str, Any]:
    """The settings of the runs that still have records, and those of a new one."""
    left = set(map(_run_name, kept))
    runs: dict[str, Any] = {}
    for name, settings in _runs(old).items():
        pairs = re.sub(r" \(\d+\)$", "", name).split(", ")
        if name == _UNNAMED or not left.isdisjoint(pairs):
            runs[name] = settings
    # As they are read back: tuples are lists in JSON.
    for name, settings in json.loads(json.dumps(_runs(new))).items():
        same = [known for known in runs if re.fullmatch(rf"{re.escape(name)}( \(\d+\))?", known)]
        if all(runs[known] != settings for known in same):
            runs[f"{name} ({len(same) + 1})" if same else name] = settings
    return {"runs": runs}


_UNNAMED = "run"


def _runs(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    runs = spec.get("runs")
    return runs if isinstance(runs, dict) and spec.keys() == {"runs"} else {_UNNAMED: dict(spec)} if spec else {}


def _run_name(result: Result) -> str:
    return f"{result.protocol} seed {result.seed}"
