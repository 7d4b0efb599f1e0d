"""Writes the graph that trains: some steps on rows, the others on images as the model has them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from dcn_plugin.engine.liveness import Live, constant_of
from dcn_plugin.engine.lower import Rows, Writer
from dcn_plugin.engine.ops import Backend
from dcn_plugin.engine.row_layout import number_rows
from dcn_plugin.engine.steps import Conv, Step
from dcn_plugin.engine.training.block import Norm, NormKind, RowsBlock
from dcn_plugin.support.onednn import without_narrow_strides

__all__ = ["is_norm_in_training", "lower_training", "norm_of"]


def lower_training(
    captured: fx.GraphModule,
    steps: list[Step],
    live: Live,
    on_rows: Collection[Step],
    backend: Backend,
    *,
    live_statistics: bool = False,
) -> fx.GraphModule:
    """Build the graph in which the steps ``on_rows`` compute on the neurons that exist.

    Args:
        captured: by :func:`dcn_plugin.engine.capture.simplified` for training.
        steps: of its graph, with their norms, in order.
        live: see :func:`dcn_plugin.engine.liveness.live_neurons`.
        on_rows: none of kind "other" or "pool".
        backend: "c" or "reference".
        live_statistics: whether norms in training take their statistics from the neurons that masks keep.
    """
    writer = _TrainingWriter(captured, live, frozenset(on_rows), frozenset(), backend, torch.device("cpu"))
    writer.live_statistics = live_statistics
    lowered = writer.run(steps)
    without_narrow_strides(lowered)  # rows that become images are in channels_last
    return lowered


def norm_of(conv: Conv, *, live_statistics: bool = False) -> Norm:
    """How the norm behind a convolution computes."""
    if conv.norm is None:
        return Norm()
    args: Any = conv.norm.args
    training, momentum, eps = args[5:8]
    kind: NormKind = ("live" if live_statistics else "batch") if training else "running"
    return Norm(kind, momentum, eps)


def is_norm_in_training(node: fx.Node) -> bool:
    """Whether a node is a batch norm that takes its statistics from the batch."""
    return node.target is torch.ops.aten.batch_norm.default and bool(node.args[5])


class _TrainingWriter(Writer):
    live_statistics = False

    def image_conv(self, step: Step, conv: Conv) -> None:
        self.copy(step)

    def row_conv(self, step: Step, conv: Conv) -> Rows:
        x, *rest = (self.as_rows(source) for source in step.inputs)
        residual = rest[0] if rest else None
        live = self.live[step.value]
        index, count = number_rows(live), int(live.sum())
        block = RowsBlock(
            x.index,
            index,
            conv.kept,
            None if residual is None else residual.index,
            tuple(conv.weight.shape),  # type: ignore[arg-type]
            conv.geometry,
            norm_of(conv, live_statistics=self.live_statistics),
            relu=conv.relu,
            backend=self.backend,
        )
        name = f"block_{len(list(self.root.children()))}"
        self.root.add_module(name, block)
        weight, bias = step.nodes[0].args[1:3]
        parameters = [weight, bias, *(conv.norm.args[1:5] if conv.norm is not None else [None] * 4)]
        call = self.graph.call_module(
            name, (x.node, None if residual is None else residual.node, *map(self._parameter, parameters))
        )
        return Rows(call, index, count)

    def _parameter(self, node: Any) -> fx.Node | None:
        if node is None:
            return None
        value = constant_of(node)
        assert value is not None
        return self.attribute(value)
