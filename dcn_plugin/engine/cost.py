"""Chooses which steps run on rows: the cheapest way through the graph, conversions included, is a minimum cut."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from dcn_plugin.engine import ops
from dcn_plugin.engine.liveness import pool_window
from dcn_plugin.engine.packed_images import can_pack, images_conv
from dcn_plugin.engine.packing import packed_bytes
from dcn_plugin.engine.rows import number_rows
from dcn_plugin.engine.steps import Conv, Step

__all__ = ["WORTH", "Choice", "Counted", "Measured", "choose", "multiply_adds", "sure_gain", "timed"]

WORTH = 0.97
"""What takes a larger share of the time of the plain way is not worth its memory."""
PAIRS = 7
"""Rounds of a comparison in turn."""

Live = dict[fx.Node, Tensor]


def multiply_adds(step: Step, live: Live) -> tuple[int, int]:
    """Multiply-adds of a convolution for one image, padding left out: of all neurons, and of those that exist."""
    conv = step.conv
    assert conv is not None
    there = live[step.inputs[0]]
    return _work(conv, torch.ones_like(there), torch.ones_like(conv.kept)), _work(conv, there, conv.kept)


def _work(conv: Conv, there: Tensor, kept: Tensor) -> int:
    outputs, inputs, high, wide = conv.weight.shape
    geometry, groups = conv.geometry, conv.geometry.groups
    # How many inputs the window of each output has, in its group.
    window = torch.ones(groups, inputs, high, wide)
    readable = F.conv2d(there[None].float(), window, None, *geometry[:3], groups)[0]
    made = kept.view(groups, outputs // groups, *kept.shape[1:]).sum(1)
    return int((readable.double() * made).sum().round())


class Costs(Protocol):
    """What a step or a conversion costs, in any unit."""

    def images(self, step: Step) -> float:
        """On images."""

    def rows(self, step: Step) -> float | None:
        """On rows; None: not at all."""

    def conversion(self, node: fx.Node) -> tuple[float, float]:
        """Of a value: to rows, and back to images."""

    def saved_by_packing(self, step: Step) -> float:
        """What a convolution on images saves if its weights are laid out once, which its cost on images counts on."""


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


@dataclass(eq=False)
class Measured:
    """Runs every convolution both ways on this machine; memory-bound steps are computed from its bandwidth.

    Args:
        live: of the graph.
        batch: images a batch.
        device: where.
        backend: of the rows.
        times: what was measured, in ms: on images and on rows.
        packed: of convolutions: on images, with weights laid out once.
    """

    live: Live
    batch: int
    device: torch.device
    backend: ops.Backend
    times: dict[Step, tuple[float, float]] = field(default_factory=dict)
    packed: dict[Step, float] = field(default_factory=dict)
    _bandwidth: float = 0.0
    _conversions: dict[tuple[torch.Size, int], tuple[float, float]] = field(default_factory=dict)

    def images(self, step: Step) -> float:
        """Milliseconds."""
        if step.kind in ("conv", "pool"):
            return self._timed(step)[0] - self.saved_by_packing(step)
        return 0.0 if step.kind == "other" else self._moved(2 * self._bytes(step.value, live=False))

    def rows(self, step: Step) -> float | None:
        """Milliseconds."""
        if step.kind in ("conv", "pool"):
            return self._timed(step)[1]
        if step.kind in ("other", "mask"):
            return None if step.kind == "other" else 0.0
        # A sum goes row by row through the kernel of the convolutions.
        passes = 4 if step.kind == "sum" else 2
        return self._moved(passes * self._bytes(step.value, live=True))

    def conversion(self, node: fx.Node) -> tuple[float, float]:
        """Milliseconds."""
        if node not in self.live:
            return 0.0, 0.0
        live = self.live[node]
        kind = (live.shape, int(live.sum()))
        if kind not in self._conversions:
            index, rows = number_rows(live).to(self.device), kind[1]
            x = torch.empty(rows, self.batch, device=self.device)
            images = ops.rows_to_dense(x, index, self.backend)
            try:
                there = timed(lambda: ops.to_rows(images, index, rows, self.backend), self.device)
                back = timed(lambda: ops.rows_to_dense(x, index, self.backend), self.device)
            finally:
                ops.forget([index])
            self._conversions[kind] = there, back
        return self._conversions[kind]

    def saved_by_packing(self, step: Step) -> float:
        """Milliseconds; 0 where it is too little to be sure of."""
        if step.conv is None or not can_pack(self.device, step.conv.weight.dtype):
            return 0.0
        if step not in self.packed:
            self.packed[step] = self._on_images(step, packed=True)
        plain = self._timed(step)[0]
        return plain - self.packed[step] if self.packed[step] < WORTH * plain else 0.0

    def _bytes(self, node: fx.Node, *, live: bool) -> int:
        if node not in self.live:
            return 0
        neurons = self.live[node].sum() if live else self.live[node].numel()
        return int(neurons) * self.batch * 4

    def _moved(self, size: int) -> float:
        if not self._bandwidth:
            values = torch.empty(2**22, device=self.device)
            self._bandwidth = 2 * values.nbytes / timed(values.relu, self.device)
        return size / self._bandwidth

    def _timed(self, step: Step) -> tuple[float, float]:
        if step not in self.times:
            run = self._pool if step.kind == "pool" else lambda one: (self._on_images(one), self._on_rows(one))
            self.times[step] = run(step)
        return self.times[step]

    def _pool(self, step: Step) -> tuple[float, float]:
        (source,), window = step.inputs, pool_window(step.value)
        images = torch.rand(self.batch, *self.live[source].shape, device=self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        indices = [number_rows(self.live[one]).to(self.device) for one in (source, step.value)]
        there, made = (int(self.live[one].sum()) for one in (source, step.value))
        x = torch.rand(there, self.batch, device=self.device)
        spread = (*map(list, window[:4]), window[4])
        try:
            on_rows = timed(lambda: ops.rows_max_pool(x, *indices, *spread, made, self.backend), self.device)
        finally:
            ops.forget(indices)
        return timed(lambda: F.max_pool2d(images, *window), self.device), on_rows

    def _on_images(self, step: Step, *, packed: bool = False) -> float:
        conv = step.conv
        assert conv is not None
        x = torch.rand(self.batch, *self.live[step.inputs[0]].shape, device=self.device)
        x = x.contiguous(memory_format=torch.channels_last)
        kept = None if bool(conv.kept.all()) else conv.kept.to(x.device, x.dtype)
        other = torch.rand(self.batch, *conv.kept.shape, device=self.device) if len(step.inputs) > 1 else None
        other = None if other is None else other.contiguous(memory_format=torch.channels_last)

        stride, padding, dilation, groups = conv.geometry
        geometry = (list(stride), list(padding), list(dilation), groups)

        def run() -> None:
            y = (images_conv if packed else F.conv2d)(x, conv.weight, conv.bias, *geometry)
            if kept is not None:
                y.mul_(kept)
            if other is not None:
                y.add_(other)
            if conv.relu:
                y.relu_()

        try:
            return timed(run, self.device)
        finally:
            ops.forget([conv.weight])

    def _on_rows(self, step: Step) -> float:
        conv = step.conv
        assert conv is not None
        indices = [number_rows(self.live[one]) for one in (*step.inputs, step.value)]
        x, *rest = (torch.rand(int(index.max()) + 1, self.batch, device=self.device) for index in indices[:-1])
        residual, residual_index = (rest[0], indices[1]) if rest else (None, None)
        rows = int(indices[-1].max()) + 1
        named = (conv.weight, conv.bias, indices[0], indices[-1], conv.kept, residual_index)
        spread = (*map(list, conv.geometry[:3]), conv.geometry.groups)
        try:
            return timed(
                lambda: ops.rows_conv(x, residual, *named, *spread, conv.relu, rows, self.backend),
                self.device,
            )
        finally:
            ops.forget(indices)


def timed(run: Callable[[], object], device: torch.device, *, least_calls: int = 5, least_ms: float = 20.0) -> float:
    """Milliseconds of a call: the least of some, which other programs disturb least.

    Args:
        run: the call; once before those that count, to make what is made once.
        device: that it computes on.
        least_calls: so many of them at least, and
        least_ms: for so long at least.
    """
    least, spent, calls = math.inf, 0.0, -1
    while calls < least_calls or spent < least_ms:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken = 1000 * (time.perf_counter() - start)
        calls += 1
        if calls:
            least, spent = min(least, taken), spent + taken
    return least


def sure_gain(plain: Callable[[], object], other: Callable[[], object], device: torch.device) -> float:
    """How many times faster ``other`` is in three rounds of four; both run in turn, as the machine's speed changes.

    Args:
        plain: a call.
        other: what might take its place.
        device: that they compute on.
    """
    ratios = []
    for _ in range(PAIRS):
        times = [timed(call, device, least_calls=1, least_ms=0.0) for call in (plain, other)]
        ratios.append(times[0] / times[1])
    return statistics.quantiles(ratios, n=4)[0]


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
                sizes[step] = _size(step, live)
        if cost is not None:
            on_rows[step] = cost
    spent = 0
    for step in sorted(sizes, key=lambda one: (on_rows[one] - costs.images(one)) / max(sizes[one], 1)):
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
    for step in sorted((one for one in saved if saved[one] > 0), key=saved.__getitem__, reverse=True):
        assert step.conv is not None
        if step.conv.weight.nbytes <= budget:
            budget -= step.conv.weight.nbytes
            chosen.add(step)
    return frozenset(chosen)


def _readers(steps: list[Step]) -> dict[fx.Node, list[Step]]:
    """The steps that read each value which a step makes."""
    made = {step.value for step in steps}
    readers: dict[fx.Node, list[Step]] = {}
    for step in steps:
        for value in dict.fromkeys(step.inputs):
            if value in made:
                readers.setdefault(value, []).append(step)
    return readers


def _size(step: Step, live: Live) -> int:
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
    chosen = frozenset(one for one in side if isinstance(one, Step))
    # Without a convolution on rows the conversions are for nothing.
    return chosen if any(step.kind == "conv" for step in chosen) else frozenset()
