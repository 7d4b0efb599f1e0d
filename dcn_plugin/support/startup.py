"""The command's start: its arguments are read before torch and timm are loaded, which takes seconds.

``import dcn_plugin`` loads the whole package and registers the timm models. In the process of the command
(``defective ...`` or ``python -m dcn_plugin.cli ...``) that waits for :func:`finish`, which the command calls as
soon as its arguments are right, or names ``evaluate``, whose protocols describe their own arguments: ``--help``,
``--version`` and a misspelt option of every other subcommand answer at once. Where a process is not known to be the
command's, everything is loaded, as anywhere else.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["finish", "is_command", "waits"]

_MODULE = "dcn_plugin.cli"
_SCRIPT = "defective"


def waits() -> bool:
    """Whether the rest of the package is left to :func:`finish`, and not loaded by ``import dcn_plugin``."""
    return _waiting


def finish() -> None:
    """Load the rest of the package, if it waits; without the collector of garbage, of which importing leaves none."""
    global _waiting
    waited, _waiting = _waiting, False
    if not waited:
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        importlib.reload(sys.modules["dcn_plugin"])
    finally:
        if collects:
            gc.enable()


def is_command(argv: Sequence[str], whole: Sequence[str], python: str) -> bool:
    """Whether a process is the command: its console script beside the interpreter, or ``python -m dcn_plugin.cli``.

    Args:
        argv: ``sys.argv`` while the package is imported.
        whole: ``sys.orig_argv``. A process that a script starts to share its work has that script in ``argv`` only.
        python: ``sys.executable``.
    """
    program = argv[0] if argv else ""
    if program == "-m":  # Python's own placeholder, as long as it looks for the module
        return any(pair == ("-m", _MODULE) for pair in itertools.pairwise(whole)) or f"-m{_MODULE}" in whole
    script = Path(program)
    beside = Path(python).parent.resolve()
    return program in whole and script.stem == _SCRIPT and script.resolve().parent == beside


# Read once: Python replaces the "-m" in sys.argv as soon as it has found the module.
_waiting = is_command(sys.argv, sys.orig_argv, sys.executable)
