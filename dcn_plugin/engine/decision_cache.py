"""What compact() decided for a network, kept for others of layers of the same kinds on the same machine."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch

from dcn_plugin.engine.capture import shape_of
from dcn_plugin.engine.clock import is_quiet
from dcn_plugin.engine.ladder import Ladder, Rung
from dcn_plugin.engine.liveness import Live
from dcn_plugin.engine.machine_key import MEASURED, machine
from dcn_plugin.engine.measured_costs import Measured, kind_of
from dcn_plugin.engine.partition import Choice, list_bytes
from dcn_plugin.engine.steps import Step
from dcn_plugin.support.cache_folder import Key

__all__ = ["Decision", "decision_key", "read_decision", "write_decision"]

_log = logging.getLogger(__name__)


class Decision(NamedTuple):
    """What was found out about a graph.

    Args:
        choice: which steps run on rows, and why.
        ladder: what was measured at which batch size; None: nothing was.
        note: what the plan says of it.
    """

    choice: Choice
    ladder: Ladder | None
    note: str


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
        **machine(device),
    }


def read_decision(key: Key, steps: list[Step], live: Live, measured: Measured | None) -> Decision | None:
    """The decision under a key, its times put into ``measured``; None: there is none, or it does not fit the budget.

    What was measured on a busy machine is taken while it is busy: an idle one can do better.
    """
    raw = MEASURED.read(key)
    if raw is None:
        return None
    try:
        numbered = {str(number): step for number, step in enumerate(steps)}
        on_rows, packed = (frozenset(steps[number] for number in raw[part]) for part in ("on_rows", "packed"))
        # The lists are those of these masks, not of those that were measured.
        sizes = {step: list_bytes(step, live) for step in on_rows if step.conv is not None}
        if sum(sizes.values()) + sum(step.conv.weight.nbytes for step in packed if step.conv) > key["budget"]:
            return None
        reasons = {numbered[number]: str(reason) for number, reason in raw["reasons"].items()}
        choice = Choice(on_rows, reasons, sizes, packed)
        rungs, *rest = raw["ladder"]
        ladder = Ladder([Rung(count, tuple(allowed), dict(ms), busy) for count, allowed, ms, busy in rungs], *rest)
        if any(rung.one_thread for rung in ladder.rungs) and is_quiet():
            return None
        times = {numbered[number]: (both[0], both[1]) for number, both in raw["times"].items()}
        packed_ms = {numbered[number]: float(ms) for number, ms in raw["packed_ms"].items()}
        if measured is not None:
            measured.times, measured.packed = times, packed_ms
        return Decision(choice, ladder, raw["note"])
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        _log.warning("A network is measured again: what was kept of it cannot be read (%s)", error)
        return None


def write_decision(key: Key, decision: Decision, steps: list[Step], measured: Measured | None) -> None:
    """Keep a decision in the place of an earlier one."""
    number = {step: place for place, step in enumerate(steps)}
    choice = decision.choice
    record = {
        "on_rows": sorted(number[step] for step in choice.on_rows),
        "packed": sorted(number[step] for step in choice.packed),
        "reasons": {number[step]: reason for step, reason in choice.reasons.items()},
        "times": {number[step]: times for step, times in (measured.times if measured else {}).items()},
        "packed_ms": {number[step]: ms for step, ms in (measured.packed if measured else {}).items()},
        "ladder": decision.ladder,
        "note": decision.note,
    }
    MEASURED.write(key, record)


def _operations(step: Step) -> str:
    """What a step without weights of its own does, and to how much."""
    return f"{step.kind} {[str(node.target) for node in step.nodes]} {shape_of(step.value)}"
