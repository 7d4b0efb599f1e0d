"""What a finished seed leaves on disk, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from dcn_plugin.errors import RecordError
from dcn_plugin.evaluate import Examples, ResultFile, hardware, package_versions

__all__ = ["FinishedSeed", "fixed_threads", "now"]


@dataclass(frozen=True, eq=False)
class FinishedSeed:
    """The results of one seed, in ``seeds/seed-S.json`` and ``seeds/seed-S.npz`` of a folder.

    Args:
        file: the records.
        examples: images to look at.
    """

    file: ResultFile
    examples: Examples

    def write(self, folder: Path, seed: int) -> None:
        """Write both files, each atomically."""
        json_path, npz_path = _paths(folder, seed)
        self.examples.write(npz_path)
        self.file.write(json_path)  # last: this file says that the seed is finished

    @classmethod
    def read(cls, folder: Path, seed: int, spec: Mapping[str, Any]) -> FinishedSeed | None:
        """Read a seed's results.

        Args:
            folder: where :meth:`write` put them.
            seed: which.
            spec: the settings, as they would be recorded now.

        Returns:
            None where they are missing, broken, or made with other settings, versions, threads or on another machine.
        """
        json_path, npz_path = _paths(folder, seed)
        try:
            file, examples = ResultFile.read(json_path), Examples.read(npz_path)
        except (FileNotFoundError, RecordError):
            return None
        here = (package_versions(), hardware())
        same = file.spec == spec and all((dict(r.versions), dict(r.hardware)) == here for r in file.results)
        return cls(file, examples) if same and file.results else None


def _paths(folder: Path, seed: int) -> tuple[Path, Path]:
    return folder / "seeds" / f"seed-{seed}.json", folder / "seeds" / f"seed-{seed}.npz"


def now() -> str:
    """The time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def fixed_threads(count: int) -> Iterator[None]:
    """Let torch compute with this many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
