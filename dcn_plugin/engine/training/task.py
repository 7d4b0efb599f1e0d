"""What training a captured model on rows comes to: which convolutions, why, and how much each skips."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from dcn_plugin.engine.capture import simplified
from dcn_plugin.engine.liveness import Live, live_neurons
from dcn_plugin.engine.ops import Backend
from dcn_plugin.engine.partition import Choice, Costs, choose, work
from dcn_plugin.engine.plan import LayerPlan, Plan
from dcn_plugin.engine.steps import Conv, Step, find_steps
from dcn_plugin.engine.training.block import NormKind
from dcn_plugin.engine.training.costs import TrainingCosts, is_masked
from dcn_plugin.engine.training.lists import computed_neurons
from dcn_plugin.engine.training.lower import is_norm_in_training, lower_training, norm_of
from dcn_plugin.errors import CompactError, SpecError

__all__ = ["NormStatistics", "SkippingCosts", "TrainingPlan", "TrainingTask"]

NormStatistics = Literal["all", "live"]
"""See :func:`dcn_plugin.engine.training.model.compact_training`."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Plan):
    """What runs how in a training step; ``print(plan)`` shows it as a table.

    ``live`` of a layer counts the multiply-adds of its forward pass; each of its two gradients takes as many.
    """

    @property
    def rows(self) -> tuple[str, ...]:
        """The convolutions that run on rows, by name; ``compact_training(..., rows=plan.rows)`` takes the same ones."""
        return tuple(layer.name for layer in self.layers if layer.backend != "dense")

    def _ways(self) -> str:
        return "training steps, forward and backward pass" if self.rows else "training steps run as the model is"


@dataclass(frozen=True, eq=False)
class TrainingTask:
    """A model to train, captured.

    Args:
        captured: the graph.
        steps: of the graph, with their norms.
        live: of the graph.
        norm_statistics: see :func:`compact_training`.
    """

    captured: fx.GraphModule
    steps: list[Step]
    live: Live
    norm_statistics: NormStatistics

    @classmethod
    def of(cls, graph: fx.GraphModule, norm_statistics: NormStatistics) -> TrainingTask:
        """The task of a traced graph."""
        captured = simplified(graph, training=True)
        return cls(captured, find_steps(captured.graph, training=True), live_neurons(captured.graph), norm_statistics)

    def lower(self, choice: Choice, backend: Backend) -> fx.GraphModule:
        """The graph of a choice."""
        live_statistics = self.norm_statistics == "live"
        return lower_training(
            self.captured, self.steps, self.live, choice.on_rows, backend, live_statistics=live_statistics
        )

    def named(self, rows: Collection[str]) -> Choice:
        """The choice that runs these convolutions on rows, and with them what lies between."""
        unknown = sorted(set(rows) - {_title(step) for step in self.steps if step.conv is not None})
        if unknown:
            raise SpecError("rows names convolutions that the network does not have.", unknown[:5])
        choice = choose(self.steps, self.live, _NamedCosts(self, frozenset(rows)), budget=2**62)
        self.check_statistics(choice)
        return choice

    def check_statistics(self, choice: Choice) -> None:
        """Refuse a choice in which a norm would take statistics from neurons that its mask drops, against the order."""
        if self.norm_statistics == "all":
            return
        alone = [step for step in self.steps if step.kind == "mask" and is_norm_in_training(step.inputs[0])]
        if any(not bool(self.live[step.value].all()) for step in alone):
            raise CompactError(
                "norm_statistics='live' is for batch norms right behind a convolution that nothing else reads; "
                f"{len(alone)} masked ones of the model are elsewhere.",
                fix="train it with norm_statistics='all'",
            )
        left = [
            _title(step)
            for step in self.steps
            if step.conv is not None
            and step not in choice.on_rows
            and step.conv.norm is not None
            and is_norm_in_training(step.conv.norm)
            and is_masked(step.conv)
        ]
        if left:
            raise CompactError(
                "norm_statistics='live' needs every masked convolution with a norm on rows, but these are not: "
                f"{', '.join(left[:5])}.",
                fix="raise max_packed_bytes, name them in rows=, or train with norm_statistics='all'",
            )

    def work(self, step: Step, conv: Conv) -> tuple[int, int]:
        """Multiply-adds of a forward pass for one image: of all neurons, and on rows."""
        there = self.live[step.inputs[0]]
        kind: NormKind = norm_of(conv, live_statistics=self.norm_statistics == "live").kind
        computed = computed_neurons(conv.kept, self.live[step.value], all_neurons=kind == "batch")
        dense = work(conv, torch.ones_like(there), torch.ones_like(conv.kept))
        return dense, work(conv, there, computed)

    def plan(
        self,
        choice: Choice,
        measured: TrainingCosts | None,
        backend: Backend,
        batch: int,
        *,
        dense_ms: float | None = None,
        compact_ms: float | None = None,
        note: str = "",
    ) -> TrainingPlan:
        """What a choice does to each layer."""
        layers = []
        for step in self.steps:
            if step.conv is None:
                continue
            dense, live = self.work(step, step.conv)
            on_rows = step in choice.on_rows
            times = (None, None) if measured is None else measured.times.get(step, (None, None))
            channels, height, width = step.conv.kept.shape
            layers.append(
                LayerPlan(
                    name=_title(step),
                    shape=(channels, height, width),
                    dense=dense,
                    live=live,
                    packed_bytes=choice.sizes.get(step, 0) if on_rows else 0,
                    dense_ms=times[0],
                    rows_ms=times[1],
                    backend=backend if on_rows else "dense",
                    reason=_skips(dense, live) if on_rows else choice.reasons.get(step, "not chosen"),
                )
            )
        return TrainingPlan(
            layers=tuple(layers),
            backend=backend,
            batch_size=batch,
            dense_ms=dense_ms,
            compact_ms=compact_ms,
            least_batch=1,
            note=note,
        )


def _skips(dense: int, live: int) -> str:
    return "skips dead neurons" if live < dense else "nothing to skip, but its neighbours are on rows"


def _title(step: Step) -> str:
    return str(step.nodes[0].meta.get("title", step.nodes[0].name))


@dataclass(eq=False)
class SkippingCosts(Costs):
    """Counts multiply-adds: every convolution that has something to skip runs on rows."""

    task: TrainingTask

    def images(self, step: Step) -> float:
        """Multiply-adds, or values."""
        if step.conv is None:
            return float(self.task.live[step.value].numel()) if step.value in self.task.live else 0.0
        return float(self.task.work(step, step.conv)[0])

    def rows(self, step: Step) -> float | None:
        """Those that are left; None: there is nothing to skip."""
        if step.conv is None:
            return None if step.kind in ("other", "pool") else float(self.task.live[step.value].sum())
        dense, live = self.task.work(step, step.conv)
        must = self.task.norm_statistics == "live" and step.conv.norm is not None and is_masked(step.conv)
        return float(live) if live < dense or must else None

    def conversion(self, node: fx.Node) -> tuple[float, float]:
        """Nothing."""
        return 0.0, 0.0

    def saved_by_packing(self, step: Step) -> float:
        """Nothing: weights change at every step."""
        return 0.0


@dataclass(eq=False)
class _NamedCosts(SkippingCosts):
    """Runs the convolutions of these names on rows, and no others."""

    names: frozenset[str]

    def images(self, step: Step) -> float:
        if step.conv is None:
            return super().images(step)
        return 1e15 if _title(step) in self.names else 0.0

    def rows(self, step: Step) -> float | None:
        if step.conv is None:
            return super().rows(step)
        return 0.0 if _title(step) in self.names else None

    def conversion(self, node: fx.Node) -> tuple[float, float]:
        cost = float(self.task.live[node].numel()) if node in self.task.live else 0.0
        return cost, cost
