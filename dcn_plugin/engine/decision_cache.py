"""What compact() measured, kept in a small file: layers of the same kinds on the same machine are not measured again.

::

    <torch.hub.get_dir()>/dcn_plugin/engine/<digest>.json     one decision: its key, which layers run how, batch sizes

``TORCH_HOME`` moves the folder, as it does for the files of torch and timm; ``DCN_ENGINE_CACHE`` names another one, or
is "off". A file that cannot be read counts as not there, and a folder that cannot be written is left alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.hub

from dcn_plugin.engine.capture import shape_of
from dcn_plugin.engine.clock import is_quiet
from dcn_plugin.engine.ladder import Rung
from dcn_plugin.engine.liveness import Live
from dcn_plugin.engine.measured_costs import Measured, kind_of
from dcn_plugin.engine.partition import Choice, list_bytes
from dcn_plugin.engine.steps import Step
from dcn_plugin.support.atomic_file import write_atomic
from dcn_plugin.support.environment import hardware, package_versions

__all__ = ["Decision", "cache_folder", "decision_key", "read_decision", "write_decision"]

_log = logging.getLogger(__name__)

Key = Mapping[str, Any]


class Decision(NamedTuple):
    """What was found out about a graph.

    Args:
        choice: which steps run on rows, and why.
        ladder: which ways are allowed at which batch size.
        chunk: this many images at a time are fastest; None: the whole batch.
        note: what the plan says of it.
    """

    choice: Choice
    ladder: list[Rung]
    chunk: int | None
    note: str


def cache_folder() -> Path | None:
    """Where decisions are kept; None: nowhere."""
    named = os.environ.get("DCN_ENGINE_CACHE")
    if named is not None and named.lower() in ("off", "0", "no", "false", ""):
        return None
    return Path(torch.hub.get_dir(), "dcn_plugin", "engine") if named is None else Path(named).expanduser()


def decision_key(
    steps: list[Step],
    live: Live,
    *,
    backend: str,
    batch: int,
    budget: int,
    device: torch.device,
    dtype: torch.dtype,
    cut: bool,
) -> Key:
    """All that a decision depends on, in words: the machine, versions, code, and the kinds of the layers in order.

    Masks of one mode and density are alike here, see :func:`kind_of`: weights and seeds do not count.
    """
    place = {step.value: number for number, step in enumerate(steps)}
    kinds = [kind_of(step, live) if step.kind in ("conv", "pool") else _operations(step) for step in steps]
    reads = [[place.get(node, -1) for node in step.inputs] for step in steps]
    return {
        "layers": list(zip(kinds, reads, strict=True)),
        "backend": backend,
        "batch": batch,
        "budget": budget,
        "cut": cut,
        "dtype": str(dtype),
        "hardware": hardware(device),
        "versions": package_versions(),
        "code": _engine_code(),
    }


def read_decision(key: Key, steps: list[Step], live: Live, measured: Measured | None) -> Decision | None:
    """The decision under a key, its times put into ``measured``; None: there is none, or it does not fit the budget.

    What was measured on a busy machine is taken while it is busy: an idle one can do better.
    """
    path = _path(key)
    if path is None or not path.is_file():
        return None
    try:
        raw = json.loads(path.read_bytes())
        if raw["key"] != json.loads(json.dumps(key)):
            return None
        numbered = {str(number): step for number, step in enumerate(steps)}
        on_rows, packed = (frozenset(steps[number] for number in raw[part]) for part in ("on_rows", "packed"))
        # The lists are those of these masks, not of those that were measured.
        sizes = {step: list_bytes(step, live) for step in on_rows if step.conv is not None}
        if sum(sizes.values()) + sum(step.conv.weight.nbytes for step in packed if step.conv) > key["budget"]:
            return None
        reasons = {numbered[number]: str(reason) for number, reason in raw["reasons"].items()}
        choice = Choice(on_rows, reasons, sizes, packed)
        ladder = [Rung(rung[0], tuple(rung[1]), *rung[2:]) for rung in raw["ladder"]]
        if any(rung.one_thread for rung in ladder) and is_quiet():
            return None
        times = {numbered[number]: (both[0], both[1]) for number, both in raw["times"].items()}
        packed_ms = {numbered[number]: float(ms) for number, ms in raw["packed_ms"].items()}
        if measured is not None:
            measured.times, measured.packed = times, packed_ms
        return Decision(choice, ladder, raw["chunk"], raw["note"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        _log.warning("%s is measured again: it cannot be read (%s)", path, error)
        return None


def write_decision(key: Key, decision: Decision, steps: list[Step], measured: Measured | None) -> None:
    """Keep a decision in the place of an earlier one."""
    path = _path(key)
    if path is None:
        return
    number = {step: place for place, step in enumerate(steps)}
    choice = decision.choice
    content = {
        "key": key,
        "on_rows": sorted(number[step] for step in choice.on_rows),
        "packed": sorted(number[step] for step in choice.packed),
        "reasons": {number[step]: reason for step, reason in choice.reasons.items()},
        "times": {number[step]: times for step, times in (measured.times if measured else {}).items()},
        "packed_ms": {number[step]: ms for step, ms in (measured.packed if measured else {}).items()},
        "ladder": decision.ladder,
        "chunk": decision.chunk,
        "note": decision.note,
    }
    try:
        write_atomic(path, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        _log.info("What was measured is not kept: %s", error)


def _operations(step: Step) -> str:
    """What a step without weights of its own does, and to how much."""
    return f"{step.kind} {[str(node.target) for node in step.nodes]} {shape_of(step.value)}"


def _path(key: Key) -> Path | None:
    folder = cache_folder()
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]
    return None if folder is None else folder / f"{digest}.json"


@functools.cache
def _engine_code() -> str:
    """SHA-256 over the files of the engine, the C kernel included."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.[cp]*")):
        if path.suffix in (".c", ".py"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
