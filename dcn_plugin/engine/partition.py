"""Chooses which steps run on rows: the cheapest way through the graph, conversions included, is a minimum cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx

from dcn_plugin.engine.liveness import Live
from dcn_plugin.engine.packing import packed_bytes
from dcn_plugin.engine.row_layout import readable
from dcn_plugin.engine.steps import Conv, Step

__all__ = ["Choice", "Costs", "Counted", "choose", "list_bytes", "multiply_adds", "work"]


def multiply_adds(step: Step, live: Live) -> tuple[int, int]:
    """Multiply-adds of a convolution for one image, padding left out: of all neurons, and of those that exist."""
    conv = step.conv
    assert conv is not None
    there = live[step.inputs[0]]
    return work(conv, torch.ones_like(there), torch.ones_like(conv.kept)), work(conv, there, conv.kept)


def work(conv: Conv, there: Tensor, mask: Tensor) -> int:
    """Multiply-adds of some outputs, bool (O, H', W'), from some inputs, bool (I, H, W), for one image."""
    windows = readable(there, conv.weight.shape[2:], conv.geometry)
    live_outputs = mask.view(conv.geometry.groups, -1, *mask.shape[1:]).sum(1)
    return int((windows * live_outputs).sum())


class Costs(Protocol):
    """What a step or a conversion costs, in any unit."""

    def images(self, step: Step) -> float:
        """The cost of a step on images."""

    def rows(self, step: Step) -> float | None:
        """The cost of a step on rows; None: it cannot run there."""

    def conversion(self, node: fx.Node) -> tuple[float, float]:
        """The costs of converting a value to rows, and back to images."""

    def saved_by_packing(self, step: Step) -> float:
        """What a convolution on images saves if its weights are laid out once; already left out of its cost there."""


@dataclass(eq=False)
class Counted:
    """Counts multiply-adds: for a backend that the caller named. A layer with nothing to skip stays on images.

    Args:
        live: of the graph.
    """

    live: Live

    def images(self, step: Step) -> float:
        """Multiply-adds, or values."""
        return float(multiply_adds(step, self.live)[0]) if step.kind == "conv" else self._values(step.value)

    def rows(self, step: Step) -> float | None:
        """Live multiply-adds, or values."""
        if step.kind != "conv":
            return None if step.kind == "other" else float(self.live[step.value].sum())
        dense, live = multiply_adds(step, self.live)
        return float(live) if live < dense else None

    def conversion(self, node: fx.Node) -> tuple[float, float]:
        """Nothing, so that a layer with something to skip never stays on images because of it."""
        return 0.0, 0.0

    def saved_by_packing(self, step: Step) -> float:
        """Nothing: no multiply-adds."""
        return 0.0

    def _values(self, node: fx.Node) -> float:
        return float(self.live[node].numel()) if node in self.live else 1.0


@dataclass(frozen=True)
class Choice:
    """Which steps run on rows, and why the others do not.

    Args:
        on_rows: the steps.
        reasons: for every convolution.
        sizes: bytes of the lists of every convolution that might run on rows.
        packed: convolutions on images whose weights are laid out once.
    """

    on_rows: frozenset[Step]
    reasons: dict[Step, str]
    sizes: dict[Step, int]
    packed: frozenset[Step] = frozenset()


def choose(steps: list[Step], live: Live, costs: Costs, *, budget: int) -> Choice:
    """The cheapest assignment of steps to rows or images.

    Args:
        steps: of the graph.
        live: of the graph.
        costs: of steps and conversions.
        budget: most bytes of lists; the layers that save most a byte come first.
    """
    reasons: dict[Step, str] = {}
    on_rows: dict[Step, float] = {}
    sizes: dict[Step, int] = {}
    for step in steps:
        cost = costs.rows(step)
        if step.kind == "conv":
            if cost is None:
                reasons[step] = "nothing to skip"
            else:
                sizes[step] = list_bytes(step, live)
        if cost is not None:
            on_rows[step] = cost
    spent = 0
    for step in sorted(sizes, key=lambda conv: (on_rows[conv] - costs.images(conv)) / max(sizes[conv], 1)):
        if spent + sizes[step] > budget:
            reasons[step] = f"its lists ({sizes[step] / 2**20:.1f} MiB) go beyond max_packed_bytes"
            del on_rows[step]
        else:
            spent += sizes[step]
    chosen = _cut(steps, costs, on_rows)
    for step in sizes:
        if step in chosen:
            dense, left = multiply_adds(step, live)
            reasons[step] = "skips dead neurons" if left < dense else "nothing to skip, but its neighbours are on rows"
        else:
            reasons.setdefault(step, "images are faster here, conversions included")
    left = budget - sum(sizes.get(step, 0) for step in chosen)
    return Choice(chosen, reasons, sizes, _worth_packing(steps, costs, chosen, left))


def _worth_packing(steps: list[Step], costs: Costs, on_rows: frozenset[Step], budget: int) -> frozenset[Step]:
    """The convolutions on images whose weights are laid out once; those that save most a byte come first."""
    saved = {
        step: costs.saved_by_packing(step) / step.conv.weight.nbytes
        for step in steps
        if step.conv is not None and step not in on_rows
    }
    chosen = set()
    for step in sorted((conv for conv in saved if saved[conv] > 0), key=saved.__getitem__, reverse=True):
        assert step.conv is not None
        if step.conv.weight.nbytes <= budget:
            budget -= step.conv.weight.nbytes
            chosen.add(step)
    return frozenset(chosen)


def _readers(steps: list[Step]) -> dict[fx.Node, list[Step]]:
    """The steps that read each value which a step makes."""
    values = {step.value for step in steps}
    readers: dict[fx.Node, list[Step]] = {}
    for step in steps:
        for value in dict.fromkeys(step.inputs):
            if value in values:
                readers.setdefault(value, []).append(step)
    return readers


def list_bytes(step: Step, live: Live) -> int:
    """Memory of the lists of rows of a convolution's forward pass."""
    conv = step.conv
    assert conv is not None
    return packed_bytes(conv.kept, live[step.inputs[0]], live[step.value], conv.weight, conv.geometry)


def _cut(steps: list[Step], costs: Costs, on_rows: dict[Step, float]) -> frozenset[Step]:
    import networkx  # type: ignore[import-untyped]  # PyTorch's own dependency; a tenth of a second that only compaction needs

    graph = networkx.DiGraph()
    made_by = {step.value: step for step in steps}
    for step in steps:
        # A step on the side of "rows" cuts its edge to "images", and pays for rows; and the other way round.
        graph.add_edge("rows", step, capacity=costs.images(step) if step in on_rows else 0.0)
        # An edge without a capacity cannot be cut.
        graph.add_edge(step, "images", **({"capacity": on_rows[step]} if step in on_rows else {}))
    for value, readers in _readers(steps).items():
        # A value is converted once, whoever reads it: the cost is cut once, an edge without a capacity never.
        there, back = costs.conversion(value)
        maker = made_by[value]
        graph.add_edge(maker, ("to images", value), capacity=back)
        graph.add_edge(("to rows", value), maker, capacity=there)
        for step in readers:
            graph.add_edge(("to images", value), step)
            graph.add_edge(step, ("to rows", value))
    _, (side, _) = networkx.minimum_cut(graph, "rows", "images")
    chosen = frozenset(node for node in side if isinstance(node, Step))
    # Without a convolution on rows the conversions are for nothing.
    return chosen if any(step.kind == "conv" for step in chosen) else frozenset()
