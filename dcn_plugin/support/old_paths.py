"""Modules under the paths that they had in 0.1.0: documented imports and whole models that it pickled name those."""

from __future__ import annotations

import sys

__all__ = ["keep_old_paths"]


def keep_old_paths(package: str, **modules: str) -> None:
    """Let modules be imported under old paths.

    Args:
        package: the package that has them; its attributes of these names, if there are any, stay what they are.
        modules: old name inside the package -> the module's path now, loaded already.
    """
    for old, path in modules.items():
        sys.modules[f"{package}.{old}"] = sys.modules[path]
        vars(sys.modules[package]).setdefault(old, sys.modules[path])
