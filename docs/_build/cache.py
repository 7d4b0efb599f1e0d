"""Results that take long to make, kept until something they depend on changes."""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

__all__ = ["cached", "fingerprint"]

_SOURCES = ("*.py", "*.c", "*.h", "*.html", "*.j2", "*.css", "*.json", "*.safetensors")
_LIBRARIES = ("torch", "timm", "numpy", "scikit-learn", "matplotlib", "torchattacks", "adversarial-robustness-toolbox")


def fingerprint(sources: Iterable[Path], package: Path) -> str:
    """SHA-256 over all that a result depends on: its own sources, the whole package, and the libraries' versions.

    Args:
        sources: the files that make the result.
        package: folder of the package.
    """
    digest = hashlib.sha256()
    for path in [*sources, *sorted(file for pattern in _SOURCES for file in package.rglob(pattern))]:
        content = path.read_bytes()
        digest.update(f"{path.name}\n{len(content)}\n".encode() + content)
    digest.update(platform.python_version().encode())
    for library in _LIBRARIES:
        digest.update(f"{library} {_version(library)}\n".encode())
    return digest.hexdigest()


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def cached(name: str, key: str, make: Callable[[Path], None], folder: Path) -> Path:
    """Folder with a result, made now unless it is there under the same key.

    Args:
        name: of the result; results of the same name under other keys are removed.
        key: what :func:`fingerprint` gave.
        make: writes the result into the empty folder that it is given. When it raises, nothing is kept.
        folder: of all results.
    """
    final = folder / f"{name}-{key[:20]}"
    if not final.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unfinished-") as scratch:
            make(Path(scratch) / "result")
            (Path(scratch) / "result").rename(final)
    for old in folder.glob(f"{name}-{'?' * 20}"):
        if old != final:
            shutil.rmtree(old)
    return final
