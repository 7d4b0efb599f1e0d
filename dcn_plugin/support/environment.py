"""Which versions and which machine a result was made with."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

import torch

__all__ = ["code_hash", "hardware", "package_versions"]

# torchvision and Pillow decode and resize images.
_PACKAGES = ("dcn-plugin", "torch", "timm", "numpy", "torchvision", "pillow")

NOT_HASHED = ("cli", "experiments", "pretrained", "report")
"""Folders of the package that choose, name and show what is measured, but compute no image and no answer."""


@functools.cache
def _package_versions() -> tuple[tuple[str, str], ...]:
    versions = [("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            versions.append((package, "not installed"))  # run from a source folder
    return tuple(versions)


def package_versions() -> dict[str, str]:
    """Versions of Python, this package, and those that compute or decode: torch, timm, numpy, torchvision, Pillow."""
    return dict(_package_versions())


@functools.cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware(device: torch.device | None = None) -> dict[str, str | int | None]:
    """Name the processor, its vector instructions and cores, the threads torch uses, and the device that computed.

    Two processors of one name may differ in their instructions, and then round differently.

    Args:
        device: where the models lie; the CPU by default. CUDA is asked for a name only if it is that.
    """
    on_gpu = device is not None and device.type == "cuda"
    return {
        "processor": _processor(),
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu" if device is None else device.type,
    }


@functools.cache
def code_hash(*wings: str) -> str:
    """SHA-256 over the Python files of this package that compute: results of other code are not taken for those of it.

    Args:
        wings: folders of :data:`NOT_HASHED` whose files count too.
    """
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if name.parts[0] not in NOT_HASHED or name.parts[0] in wings:
            digest.update(f"{name.as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()
