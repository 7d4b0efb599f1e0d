"""A run directory: finished measurements and adversarial images, each under the key of what it depends on.

::

    DIR/results.json            the records of all runs that ended, and what they were run with
    DIR/units/<digest>.json     one finished measurement: its key and its records
    DIR/sets/<digest>/key.json  what a set of adversarial images was made from
    DIR/sets/<digest>/about.json  the names of its source and of its attack
    DIR/sets/<digest>/<first>.safetensors  one batch of it

Every file is whole or not there, so a run that is killed at any moment goes on where it stopped and ends with the
same ``results.json``, but for its ``run`` entry. :class:`RunDirectory` is for those who measure; the functions read
what is there and touch nothing.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

__all__ = ["RESULTS", "RunDirectory", "StoredBatch", "StoredSet", "StoredUnit", "add_results", "run_folders",
           "stored_sets", "stored_units"]  # fmt: skip

_log = logging.getLogger(__name__)

RESULTS = "results.json"
_KEY, _ABOUT = "key.json", "about.json"


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

    def write_batch(self, key: Key, first: int, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
        """Keep one batch of a set of images, and beside it the set's key and what else there is to say of it."""
        path = self._batch_path(key, first)
        for name, words in ((_KEY, key), (_ABOUT, about)):
            if not path.with_name(name).exists():
                text = json.dumps(words, indent=1, sort_keys=True, ensure_ascii=False)
                write_atomic(path.with_name(name), text + "\n")
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
        return add_results(self.path / RESULTS, {"runs": {name: dict(spec)}}, results, run)

    def _unit_path(self, key: Key) -> Path:
        return self.path / "units" / f"{digest(key)}.json"

    def _batch_path(self, key: Key, first: int) -> Path:
        return self.path / "sets" / digest(key) / f"{first:010d}.safetensors"


@dataclass(frozen=True)
class StoredUnit:
    """One finished measurement.

    Args:
        path: of its file.
        written: when, in ns of the file system's clock.
    """

    path: Path
    written: int

    def results(self) -> list[Result]:
        """Its records; none where the file is damaged, and the log says so."""
        try:
            return list(map(Result.from_dict, json.loads(self.path.read_bytes())["results"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s is left out: it cannot be read (%s)", self.path, error)
            return []


@dataclass(frozen=True, eq=False)
class StoredBatch:
    """Adversarial images of B consecutive images of the data.

    Args:
        first: place of the first of them in the data.
        images: (B, C, H, W), uint8 or float32 in [0, 1].
        fooled: bool (B,), the source was right on the clean image, and no longer is.
        examples: "clean", "labels" and "said", the class that the source names, of the first fooled images, where the
            run kept them.
    """

    first: int
    images: Tensor
    fooled: Tensor
    examples: Mapping[str, Tensor]


@dataclass(frozen=True)
class StoredSet:
    """What one attack made of the data on one source.

    Args:
        path: of its folder.
        source: name of the attacked model; None in folders of before 0.2.
        attack: its name.
        eps: its strength, if it has one.
        rounding: as in the records.
        data_hash: SHA-256 of the clean images.
    """

    path: Path
    source: str | None
    attack: str
    eps: float | None
    rounding: str
    data_hash: str

    @classmethod
    def read(cls, path: Path) -> StoredSet | None:
        """The set in a folder; None where its key is damaged, and the log says so."""
        try:
            key, about = json.loads((path / _KEY).read_bytes()), path / _ABOUT
            attack, names = key["attack"], json.loads(about.read_bytes()) if about.exists() else {}
            name = names.get("attack") or str(attack["class"]).rpartition(".")[2]
            settings, content = attack["settings"], key["data"]["content"]
            return cls(path, names.get("source"), name, settings.get("eps"), key["rounding"], content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _log.warning("%s is left out: it says nothing of its images (%r)", path / _KEY, error)
            return None

    def batches(self) -> Iterator[StoredBatch]:
        """Its batches in the order of the data; those that are damaged are left out, and the log says so."""
        for file in sorted(self.path.glob("*.safetensors")):
            try:
                tensors = safetensors.torch.load_file(file)
                examples = {name[8:]: tensor for name, tensor in tensors.items() if name.startswith("example_")}
                batch = StoredBatch(int(file.stem), tensors["images"], tensors["fooled"], examples)
            except (safetensors.SafetensorError, OSError, ValueError, LookupError) as error:
                _log.warning("%s is left out: it cannot be read (%s)", file, error)
                continue
            yield batch


def run_folders(path: Path) -> list[Path]:
    """The run directories at and below a folder, in the order of their names; those within one are not searched."""
    if (path / RESULTS).is_file() or stored_units(path):
        return [path]
    children = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
    return [folder for child in children for folder in run_folders(child)]


def stored_units(folder: Path) -> list[StoredUnit]:
    """The finished measurements of a run directory, and the demonstration's seeds, in the order in which they came."""
    files = [*(folder / "units").glob("*.json"), *(folder / "seeds").glob("seed-*.json")]
    units = [StoredUnit(file, file.stat().st_mtime_ns) for file in files]
    return sorted(units, key=lambda unit: (unit.written, unit.path.name))


def stored_sets(folder: Path) -> Iterator[StoredSet]:
    """The adversarial images of a run directory."""
    sets = (StoredSet.read(file.parent) for file in sorted(folder.glob(f"sets/*/{_KEY}")))
    return (images for images in sets if images is not None)


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
        settings = {result.setting for result in results}
        others = [result for result in old.results if result.setting not in settings]
        records = {result.setting: result for result in (*old.results, *results)}
        joined = ResultFile(_both(old.spec, spec, others) if others else spec, tuple(records.values()), run)
        joined.write(path)
    return joined


def _read_earlier(path: Path) -> ResultFile:
    try:
        return ResultFile.read(path)
    except FileNotFoundError:
        pass
    except RecordError as error:
        _log.warning("%s is written anew: it cannot be read (%s)", path, error)
    return ResultFile({}, ())


def _both(old: Mapping[str, Any], new: Mapping[str, Any], records: Sequence[Result]) -> dict[str, Any]:
    """The settings of the runs that still have records, and those of a new one."""
    names = set(map(_run_name, records))
    runs: dict[str, Any] = {}
    for name, settings in _runs(old).items():
        pairs = re.sub(r" \(\d+\)$", "", name).split(", ")
        if name == _UNNAMED or not names.isdisjoint(pairs):
            runs[name] = settings
    # As they are read back: tuples are lists in JSON.
    for name, settings in json.loads(json.dumps(_runs(new))).items():
        namesakes = [other for other in runs if re.fullmatch(rf"{re.escape(name)}( \(\d+\))?", other)]
        if all(runs[other] != settings for other in namesakes):
            runs[f"{name} ({len(namesakes) + 1})" if namesakes else name] = settings
    return {"runs": runs}


_UNNAMED = "run"


def _runs(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    runs = spec.get("runs")
    return runs if isinstance(runs, dict) and spec.keys() == {"runs"} else {_UNNAMED: dict(spec)} if spec else {}


def _run_name(result: Result) -> str:
    return f"{result.protocol} seed {result.seed}"
